import subprocess
import sys

import jax
import numpy as np
import pytest

from levitax import export


READER = """
import sys
sys.modules["levitax"] = None
import jax, numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
run = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
np.save(sys.argv[3], run(np.load(sys.argv[2]))["logits"])
"""


@pytest.mark.parametrize("batch", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_an_exported_file_runs_without_levitax_and_is_exact_to_the_bit(batch, fused, drawn, tmp_path):
    predict = fused(image_size=(20, 13))
    images = drawn(predict, 2)
    path = export.to_stablehlo(predict, tmp_path / "levit.stablehlo", batch=batch)
    np.save(tmp_path / "images.npy", images)
    arguments = [path, tmp_path / "images.npy", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", READER, *arguments], check=True)
    logits = np.load(tmp_path / "logits.npy")
    assert np.array_equal(logits, optimised(predict, images))


def optimised(predict, images):
    """Returns the logits with all optimisations, as for a user; tests compile without most of them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        return np.asarray(jax.jit(lambda images: jax.vmap(predict)(images))(images))
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def test_other_platforms(fused, unchecked, tmp_path):
    path = export.to_stablehlo(fused(), tmp_path / "levit.stablehlo", platforms=["cuda"])
    assert jax.export.deserialize(bytearray(path.read_bytes())).platforms == ("cuda",)


def test_platforms_that_do_not_exist(fused, unchecked, tmp_path):
    with pytest.raises(ValueError, match=r"`platform` is 'cpuu'; expected one of .* Did you mean 'cpu'"):
        export.to_stablehlo(fused(), tmp_path / "levit.stablehlo", platforms=["cpuu"])
    with pytest.raises(TypeError, match=r'`platforms` is "cuda"; expected a sequence of names: `\("cuda",\)`'):
        export.to_stablehlo(fused(), tmp_path / "levit.stablehlo", platforms="cuda")
    assert list(tmp_path.iterdir()) == []


def test_without_flatbuffers(fused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs flatbuffers: run `pip install "levitax\[export\]"`'):
        export.to_stablehlo(fused(), tmp_path / "levit.stablehlo")
