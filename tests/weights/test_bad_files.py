"""Files that are refused as a whole: no code of them runs, and nothing is half loaded."""

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import pytest
import safetensors.numpy

import levitax
from levitax.weights import adapt, load, load_initial, load_into, save, state_dict
from tests.equality import tree_equal


SIXTEEN = {"patch_size": 16, "image_size": 48}


@pytest.mark.parametrize("size", (0, 7, 200, 3000, -1))
def test_a_truncated_file(file, size):
    content = file.read_bytes()
    file.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors` is not a valid safetensors file .*fetch it again"):
        load(file)


# Contents of a file that is named like a weight file: a part of the message, and of the suggested fix.
OTHER_CONTENT = {
    "an empty file": (b"", "it is empty", "fetch it again"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 31234567\n",
        "it is a Git LFS pointer",
        "`git lfs pull`",
    ),
    "a page": (b"<!DOCTYPE html>\n<html><head>", "it is a web page", "`/resolve/`"),
    "a page after spaces": (b"\r\n  <HTML lang='en'>", "it is a web page", "Fetch the file itself"),
    "an error of a server": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "it is a web page", "Fetch the file"),
}


@pytest.mark.parametrize("suffix", (".safetensors", ".pth", ".bin"))
@pytest.mark.parametrize("content", OTHER_CONTENT.values(), ids=OTHER_CONTENT)
def test_a_file_that_does_not_hold_weights_is_named(tmp_path, suffix, content, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # torch is not needed to recognise the file.
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content[0])
    with pytest.raises(ValueError) as refusal:
        load(path)
    message = str(refusal.value)
    assert f"`{path}` is not a valid" in message and content[1] in message and content[2] in message
    assert ("cut off" in message) == (content[0] == b"")


@pytest.mark.parametrize("start", (b"PK\x03\x04\x00\x00", b"\x80\x02}q\x00X\x05\x00"))
def test_a_file_of_pytorch_by_the_name_of_another(file, start):
    file.write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=r"is not a valid safetensors file \(it is a PyTorch file\)\. Rename it"):
        load(file)


def relabel(file, change):
    """Changes the header of a safetensors file and keeps its arrays."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def first_tensor(header):
    return header[next(name for name in header if name != "__metadata__")]


LIES = {
    "longer than the file": lambda header: first_tensor(header).update(data_offsets=[0, 10**9]),
    "other than its shape": lambda header: first_tensor(header).update(shape=[10**6, 10**6]),
    "backwards": lambda header: first_tensor(header).update(data_offsets=[64, 0]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_header_that_lies_about_lengths(file, lie):
    relabel(file, lie)
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        load(file)


def test_a_header_longer_than_the_file(file):
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        load(file)


def test_missing_unexpected_and_wrong_arrays_are_named_at_once(trained, tmp_path):
    arrays = state_dict(*trained, layout="timm")
    del arrays["stages.0.blocks.0.attn.qkv.bn.running_var"], arrays["stages.1.blocks.0.mlp.ln1.linear.weight"]
    arrays["stages.1.blocks.1.mlp.ln1.linear.weight"] = np.zeros((48, 24), np.float32)
    arrays["head_dist.linear.weight"] = np.zeros((5, 25), np.float32)
    arrays["stem.conv1.bn.weight"] = np.zeros((1, 8), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as refusal:
        load(tmp_path / "model.safetensors", image_size=16)
    message = str(refusal.value)
    assert "2 missing: " in message and "1 unexpected: stages.1.blocks.1.mlp.ln1.linear.weight." in message
    assert "stages.0.blocks.0.attn.qkv.bn.running_var" in message
    assert "stages.1.blocks.0.mlp.ln1.linear.weight" in message
    assert "2 of a wrong shape: " in message
    assert "head_dist.linear.weight (5, 25), expected (5, 24)" in message
    assert "stem.conv1.bn.weight (1, 8), expected (8,)" in message
    assert "a file holds one layout" not in message
    assert message.endswith("Nothing was loaded.")


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("layout", ("levitax", "timm"))
def test_weights_that_are_not_finite(trained, tmp_path, value, layout):
    where = lambda model: (model.head.distillation.weight, model.stem.convolutions[0].norm.bias)
    model = eqx.tree_at(where, trained[0], replace_fn=lambda leaf: leaf.at[(0,) * leaf.ndim].set(value))
    path = tmp_path / "model.safetensors"
    with pytest.warns(UserWarning, match="has NaN or infinite values in .*only with `allow_nonfinite=True`"):
        save(path, model, trained[1], layout=layout)
    with pytest.raises(ValueError) as refusal:
        load(path)
    names = {
        "levitax": ("head.distillation.weight", "stem.convolutions.0.norm.bias"),
        "timm": ("head_dist.linear.weight", "stem.conv1.bn.bias"),
    }
    assert all(name in str(refusal.value) for name in names[layout])
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_into(trained[0], trained[1], path)
    loaded, _ = load(path, allow_nonfinite=True)
    assert tree_equal(loaded, model) or np.isnan(value)


def test_two_layouts_in_one_file(make):
    trained = make(**SIXTEEN)
    timm, official = state_dict(*trained, layout="timm"), state_dict(*trained, layout="official")
    with pytest.raises(
        ValueError, match=r"of the unexpected names are those of the layout '(timm|official)': a file holds"
    ):
        load(timm | official)
    half = {name: array for name, array in timm.items() if not name.startswith("stages.1.")}
    half |= {name: array for name, array in official.items() if re.match(r"blocks\.[2-9]", name)}
    with pytest.raises(ValueError, match=r"47 of the unexpected names are those of the layout 'official'"):
        load(half)


def test_a_format_of_the_future(file):
    relabel(file, lambda header: header["__metadata__"].update({"levitax.format_version": "2"}))
    with pytest.raises(
        ValueError, match=r"has format version 2, from a later levitax; .*pip install --upgrade levitax"
    ):
        load(file)


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ("levitax.format_version", "one"),
        ("levitax.config", "{"),
        ("levitax.config", "[]"),
        ("levitax.config", '{"dim": -3}'),
        ("levitax.config", '{"width": 3}'),
        ("levitax.fused", ""),
    ],
)
def test_a_corrupt_levitax_header(file, entry, content):
    relabel(file, lambda header: header["__metadata__"].update({entry: content}))
    with pytest.raises(ValueError, match=r"corrupt|describes no valid model"):
        load(file)


def test_a_header_that_does_not_fit_the_arrays(file):
    def widen(header):
        config = json.loads(header["__metadata__"]["levitax.config"]) | {"mlp_mult": 5}
        header["__metadata__"]["levitax.config"] = json.dumps(config)

    relabel(file, widen)
    with pytest.raises(ValueError, match="of a wrong shape"):
        load(file)


OTHER_MODELS = {
    "a resnet": {"conv1.weight": (64, 3, 7, 7), "layer1.0.bn1.running_mean": (64,), "fc.weight": (1000, 512)},
    "a vision transformer": {
        "cls_token": (1, 1, 192),
        "blocks.0.attn.qkv.weight": (576, 192),
        "head.weight": (10, 192),
    },
    "nothing": {},
}


@pytest.mark.parametrize("shapes", OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_the_weights_of_another_model(shapes, tmp_path):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not the weights of a LeViT.*official, timm, timm_conv, transformers"):
        load(tmp_path / "model.safetensors")


def test_arrays_that_are_not_weights(trained):
    arrays = state_dict(*trained, layout="timm")
    with pytest.raises(ValueError, match="'epoch' is of type `int`; expected arrays by name"):
        load(arrays | {"epoch": 3})


def test_integers_in_place_of_weights(trained, tmp_path):
    arrays = state_dict(*trained, layout="timm")
    arrays["stem.conv1.linear.weight"] = np.zeros(arrays["stem.conv1.linear.weight"].shape, np.int8)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"`stem.conv1.linear.weight` .* has dtype int8; expected floating"):
        load(tmp_path / "model.safetensors", image_size=16)


def test_a_folder_with_two_candidates(file):
    (file.parent / "other.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"several weights files: `model.safetensors`, `other.safetensors`\. Pass"):
        load(file.parent)


def test_the_two_names_of_the_hub_are_one_candidate(file, trained):
    (file.parent / "pytorch_model.bin").write_bytes(b"never opened")
    assert tree_equal(load(file.parent), trained)


def test_a_run_folder_is_the_model_of_its_last_epoch(file, trained):
    for name in ("best", "ema"):
        (file.parent / f"{name}.safetensors").write_bytes(b"not opened")
    assert tree_equal(load(file.parent), trained)
    (file.parent / "best.safetensors").write_bytes(file.read_bytes())
    assert tree_equal(load(file.parent / "best"), trained)
    with pytest.raises(ValueError, match=r"ema\.safetensors"):
        load(file.parent / "ema")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no weights file: no name ends in \.safetensors, \.pth"
    ) as error:
        load(tmp_path)
    assert "has not ended" not in str(error.value)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="a training run that has not ended: repeat its command to end it"):
        load(tmp_path)


@pytest.mark.parametrize("source", ("nowhere.safetensors", "no/where/at/all", "weights/nowhere.pth", "levit_256"))
def test_a_path_that_does_not_exist(source):
    absolute = re.escape(str(Path(source).absolute()))
    with pytest.raises(FileNotFoundError, match=f"There is no `{absolute}`.*'timm/levit_256.fb_dist_in1k'"):
        load(source)


@pytest.mark.parametrize(
    "url", ("gs://bucket/model.safetensors", "s3://bucket", "http://host/model.pth", "file:///tmp")
)
def test_a_url(trained, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, call in (("source", lambda: load(url)), ("path", lambda: save(url, *trained))):
        with pytest.raises(ValueError, match=rf"`{name}` is '{url}', a URL; expected a path on this machine"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rest", ("", "/", "/resolve/main/model.safetensors", "?library=timm"))
def test_the_address_of_a_repository(rest):
    with pytest.raises(ValueError, match=r"a URL; expected the name of the repository: 'timm/levit_256\.fb_dist_in1k'"):
        load(f"https://huggingface.co/timm/levit_256.fb_dist_in1k{rest}")


def test_an_empty_path_is_not_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ValueError, match="`source` is empty; expected a path"):
        load("")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"does not have the name of a weights file; expected one that ends in \.safetensors"
    ):
        load(tmp_path / "model.onnx")


def test_a_corrupt_config_next_to_the_weights(file):
    (file.parent / "config.json").write_text('{"image_size": 2')
    with pytest.raises(ValueError, match=r"config\.json` is not valid JSON"):
        load(file.parent)


@pytest.mark.parametrize("package", ("safetensors", "huggingface_hub"))
def test_a_package_that_is_not_installed(package, file, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    source = file if package == "safetensors" else "timm/levit_256.fb_dist_in1k"
    with pytest.raises(ModuleNotFoundError, match=rf"{package}: run `pip install \"levitax\[weights\]\"`"):
        load(source)


def test_a_pickle_without_pytorch(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = file.rename(file.with_suffix(".pth"))
    with pytest.raises(ModuleNotFoundError, match="needs torch: install it, or convert the file to safetensors"):
        load(path)


# Arguments that do not fit together.


def test_new_classes_without_a_key(file):
    with pytest.raises(ValueError, match=r"The weights have no classifier for `num_classes` 9: pass `key=\.\.\.`"):
        load(file, num_classes=9)


def test_another_patch_size(file):
    with pytest.raises(ValueError, match=r"of other sizes: `patch_size` is 4 there and 8 here"):
        load(file, patch_size=8, image_size=32)


def test_weights_of_another_architecture_go_into_no_model(trained, make):
    model, state = make(depth=2, mlp_mult=3)
    with pytest.raises(
        ValueError, match=r"`depth` is \(1, 1\) there and \(2, 2\) here; `mlp_mult` is \(2, 2\) there and"
    ):
        load_into(model, state, state_dict(*trained, layout="timm"))


def test_another_activation(make, file):
    model, state = make(activation="silu")
    with pytest.raises(ValueError, match="`activation` is 'silu' in the model and 'hard_swish' in"):
        load_into(model, state, file)


def test_the_state_of_another_model(trained, make, file):
    with pytest.raises(ValueError, match="another model"):
        load_into(trained[0], make(dim=(24, 32))[1], file)


def test_loading_initially_after_the_state_was_split_off(trained, file):
    with pytest.raises(ValueError, match="load_into"):
        load_initial(trained[0], file)


def test_a_fused_model_is_not_changed_or_written_for_others(trained, tmp_path):
    predict = levitax.fuse(*trained)
    path = tmp_path / "fused.safetensors"
    save(path, predict.model, predict.state)
    with pytest.raises(ValueError, match="holds a fused model, which cannot have another `num_classes`"):
        load(path, num_classes=3)
    with pytest.raises(ValueError, match="holds a fused model"):
        load_into(trained[0], trained[1], path)
    for call in (
        lambda: adapt(predict.model, predict.state, num_classes=3),
        lambda: save(path, predict.model, predict.state, layout="timm"),
        lambda: load_into(predict.model, predict.state, path),
    ):
        with pytest.raises(ValueError, match="`model` is fused and has no normalisations: pass the model"):
            call()


def test_a_model_with_parts_of_the_user(trained, tmp_path):
    model = eqx.tree_at(lambda model: model.head, trained[0], eqx.nn.Identity())
    with pytest.raises(
        ValueError, match=r"parts were added or changed, at head\.classification\.bias, .*, \.\.\.\. Pass"
    ):
        save(tmp_path / "model.safetensors", model, trained[1])


def test_layouts_for_another_network(trained, make):
    with pytest.raises(ValueError, match="'vit_pytorch', which is for another network than the model's, 'paper'"):
        state_dict(*trained, layout="vit_pytorch")
    with pytest.raises(ValueError, match="'timm', which is for another network than the model's, 'vit_pytorch'"):
        state_dict(*make(network="vit_pytorch"), layout="timm")
    with pytest.raises(ValueError, match="has no classifier, and the model has one"):
        state_dict(*make(**SIXTEEN), layout="transformers_backbone")
    with pytest.raises(
        ValueError, match="have `activation` 'hard_swish' and `patch_size` 16; this one has 'hard_swish' and 4"
    ):
        state_dict(*trained, layout="transformers")
    for layout in ("official", "mmpretrain"):
        with pytest.raises(ValueError, match="this one has 'silu' and 16"):
            state_dict(*make(**SIXTEEN, activation="silu"), layout=layout)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"layout": "keras"}, "`layout` is 'keras'; expected one of 'levitax'"), ({"dtype": "float16"}, "`dtype` is")],
)
def test_unknown_choices(trained, tmp_path, keywords, message, unchecked):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "model.safetensors", *trained, **keywords)
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_shard(trained, tmp_path):
    with pytest.raises(ValueError, match=r"fold-1-of-5\.safetensors`, the name of one of several shards"):
        save(tmp_path / "fold-1-of-5.safetensors", *trained)


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"links to missing files: model\.safetensors"):
        load(tmp_path)


class Unreadable:
    shape = (5,)

    def __array__(self, *_, **__):
        raise NotImplementedError("Cannot copy out of meta tensor")


def test_arrays_without_values(trained):
    arrays: Any = state_dict(*trained, layout="timm")
    arrays["head.linear.bias"] = Unreadable()
    with pytest.raises(ValueError, match=r"`head.linear.bias` in .* cannot be read as an array .*meta tensor"):
        load(arrays, image_size=16)


def test_another_suffix(trained, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.safetensors\. For a \.pth, pass .* to `torch\.save`"):
        save(tmp_path / "model.pth", *trained)
