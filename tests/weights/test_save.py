import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import safetensors

import levitax
from levitax.weights import load, save, state_dict
from tests.equality import tree_equal


@pytest.mark.slow
@pytest.mark.parametrize("layout", ("levitax", "timm"))
def test_bfloat16_halves_the_file(make, randomise, tmp_path, layout):
    model, state = randomise(*make(dim=(64, 96)))
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save(full, model, state, layout=layout)
    save(half, model, state, layout=layout, dtype="bfloat16")
    header = lambda path: 8 + int.from_bytes(path.read_bytes()[:8], "little")
    integers = 8 * sum(array.dtype.kind == "i" for array in state_dict(model, state, layout=layout).values())
    assert (full.stat().st_size - header(full) - integers) == 2 * (half.stat().st_size - header(half) - integers)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32) if eqx.is_array(leaf) else leaf, (model, state)
    )
    assert tree_equal(load(half), rounded)


def test_a_model_in_bfloat16_is_saved_exactly(make, tmp_path):
    model, state = make()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, model)
    save(tmp_path / "model.safetensors", half, state)
    loaded, _ = load(tmp_path / "model.safetensors")
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if eqx.is_array(leaf) else leaf, half)
    assert tree_equal(loaded, exact)


def test_a_levit_inside_a_module_is_saved_with_the_modules_state(small, randomise, tmp_path):
    class Pair(eqx.Module):
        first: levitax.LeViT
        second: levitax.LeViT

    create = lambda *keys: Pair(*(levitax.LeViT(**small, key=key) for key in keys))
    pair, state = randomise(*eqx.nn.make_with_state(create)(*jax.random.split(jax.random.key(0))))
    save(tmp_path / "second.safetensors", pair.second, state)
    model, loaded = load(tmp_path / "second.safetensors")
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    expected = jax.jit(jax.vmap(levitax.Predictor(pair.second, state)))(images)
    assert jnp.array_equal(jax.jit(jax.vmap(levitax.Predictor(model, loaded)))(images), expected)


def test_saving_follows_the_umask_and_keeps_existing_permissions(make, tmp_path):
    model, state = make()
    old = os.umask(0o022)
    try:
        save(tmp_path / "model.safetensors", model, state)
    finally:
        os.umask(old)
    path = tmp_path / "model.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    save(path, model, state)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_tilde_is_the_users_home(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model, state = make()
    save("~/model.safetensors", model, state)
    assert (tmp_path / "model.safetensors").exists()
    for source in ("~/model.safetensors", "~"):
        assert tree_equal(load(source), (model, state))


def test_a_link_stays_a_link(make, tmp_path):
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "model.safetensors")
    save(tmp_path / "link.safetensors", *make())
    assert (tmp_path / "link.safetensors").is_symlink() and (tmp_path / "model.safetensors").is_file()


def test_files_for_others_say_that_they_are_of_pytorch(make, tmp_path):
    save(tmp_path / "model.safetensors", *make(patch_size=16, image_size=64), layout="transformers")
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("layout", ("levitax", "timm", "timm_conv"))
def test_files_of_any_layout_keep_what_shapes_do_not_show(make, tmp_path, layout):
    model, state = make(activation="silu", image_size=(13, 30), dropout=0.1, drop_path=0.2)
    save(tmp_path / "model.safetensors", model, state, layout=layout)
    assert load(tmp_path / "model.safetensors")[0].config == model.config


def test_a_folder_that_does_not_exist(make, tmp_path):
    with pytest.raises(OSError, match=r"nowhere/model\.safetensors` could not be written: there is no folder `"):
        save(tmp_path / "nowhere" / "model.safetensors", *make())


SAVE = """
import sys, jax, equinox as eqx, levitax
from pathlib import Path

def make(seed):
    sizes = dict(image_size=16, patch_size=4, stages=2, dim=48, depth=1, heads=1, num_classes=3)
    return eqx.nn.make_with_state(levitax.LeViT)(**sizes, key=jax.random.key(seed))
"""


def run(code, *arguments, **options):
    command = [sys.executable, "-c", SAVE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.slow
def test_the_old_file_survives_a_full_disk(tmp_path):
    path = tmp_path / "model.safetensors"
    # A limit on file size makes writing fail midway, as on a full disk.
    process = run(
        """
import resource, signal
path = Path(sys.argv[1])
levitax.save(path, *make(0))
before = path.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
try:
    levitax.save(path, *make(1))
except OSError as error:
    print(error)
assert path.read_bytes() == before
levitax.load(path)
""",
        path,
    )
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "could not be written" in output and "Existing files are unchanged" in output
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.slow
def test_two_processes_save_the_same_path(tmp_path):
    path, end = tmp_path / "model.safetensors", tmp_path / "end"
    code = """
model, path, end = make(int(sys.argv[2])), Path(sys.argv[1]), Path(sys.argv[3])
while not end.exists():
    levitax.save(path, *model)
"""
    processes = [run(code, path, seed, end) for seed in (0, 1)]
    try:
        seen = set()
        # Waits until both have written.
        while len(seen) < 2 and all(process.poll() is None for process in processes):
            if path.exists():
                seen.add(float(load(path)[0].stem.convolutions[0].weight[0, 0, 0, 0]))
        for _ in range(20):
            seen.add(float(load(path)[0].stem.convolutions[0].weight[0, 0, 0, 0]))
    finally:
        end.touch()
    assert [process.communicate()[1] for process in processes] == ["", ""]
    seen.add(float(load(path)[0].stem.convolutions[0].weight[0, 0, 0, 0]))
    # Every read gives one of the two models, complete.
    assert len(seen) == 2
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "end"}
