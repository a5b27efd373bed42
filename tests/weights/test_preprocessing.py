"""Weight files keep the preprocessing of their images, also when they are moved."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import levitax
from levitax.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from levitax.weights import _tree, LayoutName
from levitax.weights._format import Header


OURS = Preprocessing(
    image_size=(16, 16), crop_ratio=1.0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), class_names=tuple("abcde")
)
# A preprocessing that `LevitImageProcessor` supports: sizes that are multiples of 256 / 224, offsets rounded down.
IN_TRANSFORMERS = dataclasses.replace(OURS, crop_ratio=16 / 18, crop_offset="floor")


@pytest.fixture
def save(make, tmp_path):
    """Saves a small model and its preprocessing in a layout; returns the path and the expected preprocessing."""

    def save(layout: LayoutName = "levitax", preprocessing=OURS, **overrides):
        sizes = {} if layout == "levitax" else {"patch_size": 16, "image_size": 64, "dim": (16, 24, 32), "stages": 3}
        sizes |= {} if layout == "levitax" else {"heads": (1, 2, 2), "depth": (1, 1, 1)}
        model, state = make(**sizes | overrides)
        if preprocessing is not None:
            preprocessing = dataclasses.replace(preprocessing, image_size=model.config.image_size)
        folder = tmp_path / layout
        folder.mkdir(exist_ok=True)
        levitax.save(folder / "model.safetensors", model, state, layout=layout, preprocessing=preprocessing)
        return folder / "model.safetensors", preprocessing

    return save


@pytest.mark.parametrize("layout", ("levitax", "official", "timm", "timm_conv", "transformers"))
def test_a_file_that_is_moved_keeps_its_preprocessing(save, layout, tmp_path):
    path, expected = save(layout, IN_TRANSFORMERS if layout == "transformers" else OURS)
    assert levitax.load_preprocessing(path) == expected
    moved = shutil.move(path, tmp_path / "elsewhere.safetensors")
    assert levitax.load_preprocessing(moved) == expected


def test_a_fused_file_keeps_it_too(make, tmp_path):
    predict = levitax.fuse(*make())
    levitax.save(tmp_path / "fused.safetensors", predict.model, predict.state, preprocessing=OURS)
    assert levitax.load_preprocessing(tmp_path / "fused.safetensors") == OURS


@pytest.mark.parametrize("layout", ("timm", "timm_conv", "transformers"))
def test_files_in_other_layouts_keep_it_in_json_next_to_them(save, layout):
    path, expected = save(layout, IN_TRANSFORMERS if layout == "transformers" else OURS)
    # Other libraries write no levitax header.
    save_file(load_file(path), path)
    assert levitax.load_preprocessing(path) == expected
    assert levitax.load_preprocessing(path.parent) == expected


def test_other_fields_of_the_json_are_kept(save, tmp_path):
    (tmp_path / "timm").mkdir()
    config = tmp_path / "timm" / "config.json"
    config.write_text(json.dumps({"license": "apache-2.0", "num_classes": 1}))
    save("timm")
    content = json.loads(config.read_text())
    assert content["license"] == "apache-2.0" and content["num_classes"] == 5
    assert content["label_names"] == list("abcde") and content["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("second", ("timm", "transformers"))
def test_fields_of_the_previous_weights_are_removed(save, second, tmp_path):
    first = {"timm": "transformers", "transformers": "timm"}[second]
    save(first, THEIRS[first])
    shutil.copytree(tmp_path / first, tmp_path / second)
    unnamed = dataclasses.replace(THEIRS[second], mean=(0.7, 0.7, 0.7), class_names=())
    path, expected = save(second, unnamed)
    save_file(load_file(path), path)
    assert levitax.load_preprocessing(path) == expected
    content = json.loads(path.with_name("config.json").read_text())
    assert ("model_type" in content) == (second == "transformers") and "label_names" not in content


THEIRS = {"timm": OURS, "transformers": IN_TRANSFORMERS}


def test_a_file_without_preprocessing_replaces_one_with_it(save):
    path, _ = save("timm")
    save("timm", preprocessing=None)
    with pytest.raises(ValueError, match="does not say how to preprocess images"):
        levitax.load_preprocessing(path)


@pytest.mark.parametrize("layout", ("timm", "timm_conv"))
@pytest.mark.parametrize("activation", ("silu", "gelu", "relu", "hard_swish"))
def test_the_activation_is_in_timms_json(save, layout, activation):
    path, _ = save(layout, activation=activation)
    save_file(load_file(path), path)
    assert levitax.load(path)[0].config.activation == activation
    config = path.with_name("config.json")
    config.write_text(config.read_text().replace(f'"act_layer": "{activation}"', '"act_layer": "mish"'))
    with pytest.raises(ValueError, match="has the `act_layer` 'mish'; expected one of hard_swish"):
        levitax.load(path)
    # A published architecture whose activation in timm differs from that of the sizes.
    sizes = {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "depth": [1, 1, 1]}
    config.write_text(json.dumps({"architecture": "levit_256d", "model_args": sizes}))
    assert levitax.load(path)[0].config.activation == "silu"


@pytest.mark.parametrize(
    ("layout", "overrides", "message"),
    [
        ("timm", {"image_size": (72, 64)}, r"timm cannot describe a LeViT with `image_size` \(72, 64\)"),
        ("timm", {"mlp_mult": 3}, r"`mlp_mult` \(3, 3, 3\)"),
        ("timm", {"key_dim": (8, 8, 16)}, r"`key_dim` \(8, 8, 16\)"),
        ("transformers", {"stages": 2, "dim": (16, 24), "heads": (1, 2), "depth": (1, 1)}, "`stages` 2"),
        ("transformers", {"value_dim": 12}, r"`value_dim` \(12, 12, 12\)"),
        ("transformers", {"subsample_value_ratio": 2}, r"`subsample_value_ratio` \(2, 2\)"),
    ],
    ids=str,
)
def test_models_that_the_json_of_a_layout_cannot_describe(save, layout, overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(layout, THEIRS[layout], **overrides)
    assert list((tmp_path / layout).iterdir()) == []


def test_preprocessing_that_timm_does_not_support(save):
    with pytest.raises(ValueError, match="`crop_offset` 'floor'; timm has 'round'"):
        save("timm", IN_TRANSFORMERS)


def test_other_layouts_and_names_get_no_json(save, make, tmp_path):
    save("official")
    assert [path.name for path in (tmp_path / "official").iterdir()] == ["model.safetensors"]
    levitax.save(tmp_path / "mine.safetensors", *make(), preprocessing=OURS)
    assert not (tmp_path / "config.json").exists()


# Files from the hub (timm/levit_256.fb_dist_in1k, facebook/levit-256), with shortened class names.
TIMM = {
    "architecture": "levit_128s",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}
TRANSFORMERS = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}


@pytest.fixture(scope="module")
def published(key):
    """Returns the arrays of a published variant in a layout."""
    model, state = levitax.levit_128s(key=key)
    return lambda layout: levitax.weights.state_dict(model, state, layout=layout)


def written(folder, arrays, **files):
    """Writes a folder with weights as other libraries do."""
    save_file(arrays, folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_timms_json(published, tmp_path):
    folder = written(tmp_path, published("timm"), config=TIMM)
    assert levitax.load_preprocessing(folder) == Preprocessing(crop_ratio=0.9)


def test_timms_other_choices(published, tmp_path):
    fields = {"interpolation": "bilinear", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3}
    names = {str(number): f"class {number}" for number in range(1000)}
    config = {**TIMM, "pretrained_cfg": TIMM["pretrained_cfg"] | fields, "label_names": names}
    folder = written(tmp_path, published("timm"), config=config)
    expected = Preprocessing(crop_ratio=1.0, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
    assert levitax.load_preprocessing(folder) == dataclasses.replace(expected, class_names=tuple(names.values()))
    # Before 2023, all fields were on one level.
    folder = written(tmp_path, published("timm"), config={"architecture": "levit_128s", **fields})
    assert levitax.load_preprocessing(folder) == expected


def test_transformers_json(published, tmp_path):
    # ImageNet has two classes called crane.
    names = [f"class {number}" for number in range(998)] + ["crane", "crane"]
    config = {"model_type": "levit", "id2label": {str(number): name for number, name in enumerate(names)}}
    folder = written(tmp_path, published("transformers"), config=config, preprocessor_config=TRANSFORMERS)
    preprocessing = levitax.load_preprocessing(folder)
    assert dataclasses.replace(preprocessing, class_names=()) == Preprocessing(crop_offset="floor")
    assert preprocessing.class_names[:2] == ("class 0", "class 1")
    assert preprocessing.class_names[-2:] == ("crane (998)", "crane (999)")


@pytest.mark.parametrize("size", ({"shortest_edge": 224}, 224))
def test_transformers_other_choices(published, size, tmp_path):
    fields = {"size": size, "crop_size": {"height": 224, "width": 224}, "resample": 2, "do_normalize": False}
    labels = {str(number): f"LABEL_{number}" for number in range(1000)}
    folder = written(
        tmp_path, published("transformers"), config={"id2label": labels}, preprocessor_config=TRANSFORMERS | fields
    )
    expected = Preprocessing(crop_offset="floor", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert levitax.load_preprocessing(folder) == expected


@pytest.mark.parametrize(
    ("layout", "file", "fields", "message"),
    [
        ("timm", "config", {"pretrained_cfg": {"mean": [123.7, 116.3, 103.5]}}, "`mean` is .*up to 255"),
        ("timm", "config", {"pretrained_cfg": {"std": [0.2, math.nan, 0.2]}}, "`std` is .*nan"),
        ("timm", "config", {"pretrained_cfg": {"mean": [0.5] * 3, "crop_mode": "squash"}}, "`crop_mode` is 'squash'"),
        (
            "timm",
            "config",
            {**TIMM, "label_names": ["cat", "dog"]},
            "`class_names` 2 and the model 1000.*Correct the JSON",
        ),
        ("timm", "config", {**TIMM, "label_names": {"0": "cat", "2": "dog"}}, "`label_names` has classes by 0, 2"),
        ("timm", "config", {"pretrained_cfg": {"mean": [0.5] * 3, "input_size": [3, 99, 99]}}, r"`image_size` \(99"),
        ("transformers", "preprocessor_config", {"do_center_crop": False}, "`do_center_crop` is False; expected true"),
        ("transformers", "preprocessor_config", {"rescale_factor": 1 / 127.5}, "`rescale_factor` is"),
        ("transformers", "preprocessor_config", {"size": {"height": 224, "width": 224}}, "with 'shortest_edge'"),
        ("transformers", "preprocessor_config", {"crop_size": {"height": 224, "width": 192}}, "expected a square"),
        ("transformers", "preprocessor_config", {"crop_size": {"shortest_edge": 224}}, "with 'height', 'width'"),
        ("transformers", "preprocessor_config", {"image_processor_type": "CLIPImageProcessor"}, "'LevitImageProcess"),
        ("transformers", "preprocessor_config", {"do_flip_channel_order": True}, "`do_flip_channel_order` is True"),
        ("transformers", "preprocessor_config", {"do_normalize": "false"}, "`do_normalize` is 'false'; expected true"),
        ("transformers", "preprocessor_config", {"resample": 7}, "`resample` is 7; expected a filter of Pillow"),
        ("transformers", "preprocessor_config", {"size": 0}, "`size` is 0; expected one positive integer"),
        ("transformers", "preprocessor_config", {"size": {"shortest_edge": math.inf}}, "`size` is .*inf.*; expected"),
        ("timm", "config", {**TIMM, "label_names": "cat"}, "`label_names` is 'cat'; expected a list"),
        ("timm", "config", {**TIMM, "label_names": [None] * 1000}, r"`label_names` is \[None.*; expected a list"),
        ("timm", "config", {"pretrained_cfg": {"mean": [0.5] * 3, "input_size": 224}}, "`input_size` is 224; expected"),
        ("timm", "config", {"pretrained_cfg": {"mean": "101"}}, "`mean` is '101'; expected a list of numbers"),
        (
            "timm",
            "config",
            {"pretrained_cfg": {"mean": [0.5] * 3, "crop_pct": 0}},
            "`crop_pct` is 0; expected a number above 0",
        ),
        ("timm", "config", {"pretrained_cfg": {"mean": [0.5] * 3, "crop_pct": 10**400}}, "`crop_pct` is 1000.*; expec"),
    ],
    ids=str,
)
def test_json_that_does_not_fit(published, layout, file, fields, message, tmp_path):
    folder = written(tmp_path, published(layout), **{file: fields})
    with pytest.raises(ValueError, match=message):
        levitax.load_preprocessing(folder)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("official", Preprocessing()),
        ("timm", Preprocessing(crop_ratio=0.9)),
        ("transformers", Preprocessing(crop_offset="floor")),
    ],
)
def test_published_weights_without_preprocessing(published, layout, expected):
    with pytest.warns(UserWarning, match=f"does not say.*`crop_ratio` {expected.crop_ratio}"):
        assert levitax.load_preprocessing(published(layout)) == expected


@pytest.mark.parametrize(
    "overrides", ({"num_classes": 10}, {"in_channels": 1}, {"image_size": 256}, {"depth": 2, "drop_path": 0.0})
)
def test_other_weights_without_preprocessing(overrides, key):
    sizes = {**levitax.VARIANTS["levit_128s"], **overrides}
    config = levitax.LeViTConfig(**sizes)
    model, _ = _tree.skeleton(config)
    arrays = {path: np.zeros(shape, np.float32) for path, shape in _tree.shapes(model).items()}
    with pytest.raises(ValueError, match=r"does not say how to preprocess images.*levitax.data.Preprocessing\("):
        levitax.load_preprocessing(arrays)


def test_another_image_size(save):
    path, expected = save()
    assert levitax.load_preprocessing(path, image_size=(24, 32)) == dataclasses.replace(expected, image_size=(24, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (32, 16)}, r"`image_size` \(32, 16\) and the model \(16, 16\)"),
        ({"mean": (0.5,), "std": (0.5,)}, "`channels` 1 and the model 3"),
        ({"class_names": ("a", "b")}, "`class_names` 2 and the model 5"),
    ],
)
def test_a_preprocessing_of_another_model(make, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        levitax.save(tmp_path / "model.safetensors", *make(), preprocessing=dataclasses.replace(OURS, **changes))
    assert not list(tmp_path.iterdir())


def test_preprocessing_that_transformers_does_not_support(save):
    with pytest.raises(ValueError, match="`crop_offset` 'round'; transformers"):
        save("transformers")
    with pytest.raises(ValueError, match="resizes the shorter edge to 71 pixels"):
        save("transformers", dataclasses.replace(IN_TRANSFORMERS, crop_ratio=64 / 71.5))


def test_a_corrupt_header(save):
    path, _ = save()
    arrays, config = load_file(path), levitax.load(path)[0].config
    for content in ('{"mean": [0.5]}', "[1]", "{"):
        header = Header("levitax", config, False, None).to_metadata()
        save_file(arrays, path, {**header, "levitax.preprocessing": content})
        with pytest.raises(ValueError, match="header"):
            levitax.load(path)


def test_defaults_are_imagenets():
    assert (Preprocessing().mean, Preprocessing().std) == (IMAGENET_MEAN, IMAGENET_STD)
