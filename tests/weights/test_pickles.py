"""Files of PyTorch. Needs torch: `pip install levitax[parity]`."""

import json
import pickle

import numpy as np
import pytest

from levitax.weights import load, save, state_dict
from tests.equality import tree_equal


torch = pytest.importorskip("torch")


@pytest.fixture
def trained(make, randomise):
    return randomise(*make(patch_size=16, image_size=48))


@pytest.fixture
def tensors(trained):
    arrays = state_dict(*trained, layout="official")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("wrap", (lambda tensors: tensors, lambda tensors: {"model": tensors, "epoch": 7}))
@pytest.mark.parametrize("zipped", (True, False))
def test_a_checkpoint_is_loaded(trained, tensors, tmp_path, wrap, zipped):
    path = tmp_path / "LeViT.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=zipped)
    assert tree_equal(load(path), trained, typematch=True)
    assert tree_equal(load(tmp_path), trained, typematch=True)


def test_a_dictionary_of_tensors_is_loaded(trained, tensors):
    half = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model, _ = load(half)
    exact = half["patch_embed.0.c.weight"].float().numpy()
    assert np.array_equal(model.stem.convolutions[0].weight, exact)
    assert tensors.keys() == half.keys()  # The caller's dictionary is unchanged.


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_pickle_is_not_run(tensors, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "model.pth"
    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        write({"model": tensors, "optimizer": Malice(ran)}, path)
        with pytest.raises(ValueError, match=r"model\.pth` was refused: it asks to run code"):
            load(path)
        assert not ran.exists()


@pytest.mark.parametrize("zipped", (True, False))
def test_a_truncated_checkpoint(tensors, tmp_path, zipped):
    path = tmp_path / "model.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in (0, 1, 5, *range(64, len(whole), len(whole) // 97)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.pth` is not a valid PyTorch file"):
            load(path)


@pytest.mark.parametrize("content", (b"junk", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1"))
def test_other_content_in_a_file_named_like_a_checkpoint(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth` is not a valid PyTorch file"):
        load(path)


def test_a_safetensors_file_by_the_name_of_another(trained, tmp_path):
    save(tmp_path / "model.safetensors", *trained)
    path = (tmp_path / "model.safetensors").rename(tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"\(it is a safetensors file\)\. Rename it to end in \.safetensors"):
        load(path)


@pytest.mark.parametrize("ending", ("pth", "bin"))
def test_shards_are_read_as_one_file(trained, tensors, tmp_path, ending):
    index = {name: f"pytorch_model-{number % 2 + 1:05}-of-00002.{ending}" for number, name in enumerate(tensors)}
    for shard in set(index.values()):
        torch.save({name: tensors[name] for name in tensors if index[name] == shard}, tmp_path / shard)
    (tmp_path / f"pytorch_model.{ending}.index.json").write_text(json.dumps({"weight_map": index}))
    assert tree_equal(load(tmp_path), trained, typematch=True)


def test_a_part_of_a_checkpoint_is_taken_by_its_prefix(trained, tensors, tmp_path):
    torch.save({"student": {}, "teacher": {"backbone": tensors}, "epoch": 3}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"pass `prefix=.teacher\.backbone\."):
        load(tmp_path)
    assert tree_equal(load(tmp_path, prefix="teacher.backbone."), trained, typematch=True)


def test_a_pytorch_that_cannot_load_safely_is_refused(tensors, tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    torch.save(tensors, path)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(
        ModuleNotFoundError, match=r"safely needs PyTorch 2\.10 or newer, and 2\.5\.1\+cpu is installed"
    ):
        load(path)


def test_the_checkpoint_of_another_model(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": torch.nn.Linear(3, 4).state_dict()}, path)
    with pytest.raises(
        ValueError,
        match=r"model\.pth`: these are not the weights of a LeViT: none of 2 names \(`bias`, `weight`, \.\.\.\)",
    ):
        load(path)


def test_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="holds one `Tensor`; expected a dictionary of arrays"):
        load(path)


def test_arrays_that_are_missing_are_named(tensors, tmp_path):
    path = tmp_path / "model.pth"
    del tensors["blocks.0.m.qkv.bn.running_mean"]
    torch.save({"model": tensors}, path)
    with pytest.raises(ValueError, match=r"1 missing: blocks\.0\.m\.qkv\.bn\.running_mean\. Nothing was loaded"):
        load(path)
