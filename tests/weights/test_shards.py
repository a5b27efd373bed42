"""Checkpoints in several files, as trainers write them for large models, and sometimes for small ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from levitax.data import Preprocessing
from levitax.weights import load, load_into, load_preprocessing, save, state_dict
from tests.equality import tree_equal


INDEX = "model.safetensors.index.json"


def write_shards(
    folder: Path, arrays: dict[str, np.ndarray], count: int = 3, name: str = "model", metadata=None
) -> list[str]:
    """Splits arrays into files and writes the index, as transformers and huggingface_hub do."""
    shards = [f"{name}-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    index = {array: shards[number * count // len(arrays)] for number, array in enumerate(sorted(arrays))}
    for shard in shards:
        part = {array: arrays[array] for array in arrays if index[array] == shard}
        safetensors.numpy.save_file(part, folder / shard, metadata or {"format": "pt"})
    content = {"metadata": {"total_size": sum(array.nbytes for array in arrays.values())}, "weight_map": index}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(content))
    return shards


@pytest.fixture
def trained(make, randomise):
    return randomise(*make(patch_size=16, image_size=(48, 64)))


@pytest.fixture
def folder(trained, tmp_path):
    write_shards(tmp_path, state_dict(*trained, layout="timm"))
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 48, 64]}}))
    return tmp_path


def test_shards_are_read_as_one_file(trained, folder, make):
    for source in (folder, folder / INDEX, str(folder / INDEX)):
        assert tree_equal(load(source), trained, typematch=True)
    model, state = make(patch_size=16, image_size=(48, 64))
    assert tree_equal(load_into(model, state, folder), trained)


def test_our_header_is_read_in_shards(make, randomise, tmp_path):
    trained = randomise(*make(activation="silu", drop_path=0.25))
    preprocessing = Preprocessing(image_size=16, mean=(0.1, 0.2, 0.3), class_names=tuple("abcde"))
    save(tmp_path / "whole.safetensors", *trained, layout="timm", preprocessing=preprocessing)
    with safetensors.safe_open(tmp_path / "whole.safetensors", "numpy") as file:
        metadata = file.metadata()
    folder = tmp_path / "shards"
    folder.mkdir()
    shards = write_shards(folder, state_dict(*trained, layout="timm"), metadata=metadata)
    model, state = load(folder)
    assert model.config == trained[0].config and tree_equal((model, state), trained)
    assert load_preprocessing(folder) == preprocessing
    arrays = safetensors.numpy.load_file(folder / shards[1])
    safetensors.numpy.save_file(arrays, folder / shards[1], {**metadata, "levitax.layout": "timm_conv"})
    with pytest.raises(ValueError, match=r"different headers: .* differs in levitax\.layout"):
        load(folder)


def test_shards_of_any_name(trained, folder):
    for path in sorted(folder.glob("*.safetensors")):
        path.rename(path.with_name(path.name.replace("model-", "part")))
    index = (folder / INDEX).read_text().replace("model-", "part")
    (folder / INDEX).unlink()
    (folder / "ours.safetensors.index.json").write_text(index)
    assert tree_equal(load(folder, image_size=(48, 64)), trained)


def test_next_to_shards_the_other_formats_shards_do_not_matter(trained, folder):
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    (folder / "pytorch_model-1.bin").write_bytes(b"never opened")
    assert tree_equal(load(folder), trained)


def test_a_prefix_is_taken_off_shards_too(trained, tmp_path):
    arrays = {f"encoder.{name}": array for name, array in state_dict(*trained, layout="timm").items()}
    write_shards(tmp_path, arrays)
    assert tree_equal(load(tmp_path, prefix="encoder.", image_size=(48, 64)), trained)


def test_missing_shards_are_named_at_once(folder):
    (folder / "model-00001-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"lists 3 shards, and 2 are missing: model-00001-of-00003.safetensors, model-00003-of-00003.safet",
    ):
        load(folder)


def test_shards_without_their_index(folder):
    (folder / INDEX).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"There are shards, but their index `.*/{INDEX}` is missing: fetch it"
    ):
        load(folder)


def test_one_shard_is_not_taken_for_a_smaller_model(folder):
    for name in ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"):
        with pytest.raises(ValueError, match=rf"{name}` is one of several shards\. Pass the path of .*`{INDEX}`"):
            load(folder / name)


def test_a_shard_of_one_is_a_whole_file(trained, tmp_path):
    (shard,) = write_shards(tmp_path, state_dict(*trained, layout="timm"), count=1)
    for source in (tmp_path, tmp_path / shard):
        assert tree_equal(load(source, image_size=(48, 64)), trained)
    (tmp_path / INDEX).unlink()
    assert tree_equal(load(tmp_path, image_size=(48, 64)), trained)


def test_shards_of_another_checkpoint(trained, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    arrays = state_dict(*trained, layout="timm")
    del arrays["head.linear.bias"]
    write_shards(other, arrays | {"stages.9.extra": np.zeros(1, np.float32)})
    shard = "model-00001-of-00003.safetensors"
    shutil.copy(other / shard, folder / shard)
    with pytest.raises(ValueError, match=rf"hold different arrays: head\.linear\.bias not in {shard}.*fetch all of"):
        load(folder)


@pytest.mark.parametrize(
    "content", ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', b"\xff"), ids=repr
)
def test_an_invalid_index(folder, content):
    (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"{INDEX}` is not a shard index; expected JSON such as"):
        load(folder)


@pytest.mark.parametrize("shard", ("../model.safetensors", "/etc/model.safetensors", "a/b.safetensors"))
def test_an_index_that_leads_elsewhere(folder, shard):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match=r"is not a shard index; expected JSON .* with files next to it"):
        load(folder)


def test_a_corrupt_shard(folder):
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors` is not a valid .* Git LFS pointer"):
        load(folder)


def test_several_models_in_a_folder_are_not_taken_for_shards(folder, trained):
    write_shards(folder, state_dict(*trained, layout="timm"), name="ema")
    with pytest.raises(ValueError, match=rf"several weights files: `ema\.safetensors\.index\.json`, `{INDEX}`\. Pass"):
        load(folder)
    assert tree_equal(load(folder / "ema.safetensors.index.json", image_size=(48, 64)), trained)
