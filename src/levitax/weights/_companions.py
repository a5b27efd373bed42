"""The JSON files in which timm and transformers keep, next to weights, what the arrays do not say."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._config import LeViTConfig
from .._variants import VARIANTS
from ..data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ._layouts import LayoutName
from ._recognise import differences


CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

# What Pillow, and so transformers, calls its filters.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

# The shorter edge of an image in `LevitImageProcessor`, over `size["shortest_edge"]`.
_SHORTEST_EDGE = 256 / 224


def read_preprocessing(companions: Mapping[str, Mapping[str, Any]], where: str) -> Preprocessing | None:
    """The preprocessing that timm's `config.json` or transformers' two files describe, given by file name; `None` if
    they do not.

    **Raises:** `ValueError` for what is out of range, and for preprocessing that is none of ours.
    """
    config, processor = companions.get(CONFIG, {}), companions.get(PROCESSOR, {})
    pretrained = config.get("pretrained_cfg", config)
    try:
        if isinstance(pretrained, Mapping) and ("mean" in pretrained or "std" in pretrained):
            return _from_timm(pretrained, _names(config.get("label_names", pretrained.get("label_names"))))
        if processor:
            return _from_transformers(processor, _names(config.get("id2label")))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"The preprocessing next to {where} cannot be used: {error}") from error
    return None


def companions(layout: LayoutName, config: LeViTConfig, preprocessing: Preprocessing) -> dict[str, dict[str, Any]]:
    """The content of the files that belong next to weights of a layout, by name; empty for layouts without any."""
    writers: dict[str, Callable[[LeViTConfig, Preprocessing], dict[str, dict[str, Any]]]] = {
        "timm": _timm,
        "timm_conv": lambda *described: _timm(*described, infix="_conv"),
        "transformers": _transformers,
        "transformers_backbone": _transformers,
    }
    return writers[layout](config, preprocessing) if layout in writers else {}


def _from_timm(fields: Mapping[str, Any], names: Sequence[str]) -> Preprocessing:
    # A missing field has timm's default (`timm.data.resolve_data_config`).
    if (mode := fields.get("crop_mode") or "center") != "center":
        raise ValueError(f"`crop_mode` is {mode!r}; only 'center' can be read. Pass a `Preprocessing` of your own.")
    return Preprocessing(
        image_size=tuple(fields.get("input_size", (3, 224, 224))[1:]),
        crop_ratio=fields.get("crop_pct") or 0.875,
        interpolation=fields.get("interpolation") or "bicubic",
        mean=fields.get("mean", IMAGENET_MEAN),
        std=fields.get("std", IMAGENET_STD),
        class_names=tuple(names),
    )


def _from_transformers(fields: Mapping[str, Any], names: Sequence[str]) -> Preprocessing:
    # A missing field has the default of `LevitImageProcessor`.
    get = lambda name, default: default if fields.get(name) is None else fields[name]
    for name in ("do_resize", "do_center_crop", "do_rescale"):
        if not get(name, True):
            raise ValueError(f"`{name}` is false; expected true. Pass a `Preprocessing` of your own.")
    if abs(255 * get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise ValueError(f"`rescale_factor` is {fields['rescale_factor']}; expected 1 / 255.")
    size, crop = get("size", 224), get("crop_size", 224)
    if isinstance(size, Mapping):
        size = size.get("shortest_edge")
    if size is None:
        raise ValueError(
            f"`size` is {fields['size']}, which does not keep the aspect ratio; expected 'shortest_edge'. Pass a "
            "`Preprocessing` of your own."
        )
    rows, columns = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
    if rows != columns:
        raise ValueError(f"`crop_size` is {fields['crop_size']}; expected a square.")
    normalises = get("do_normalize", True)
    mean, std = get("image_mean", IMAGENET_MEAN), get("image_std", IMAGENET_STD)
    return Preprocessing(
        image_size=(rows, columns),
        crop_ratio=_ratio(rows, int(_SHORTEST_EDGE * size)),
        interpolation=_RESAMPLE[get("resample", _RESAMPLE.index("bicubic"))],
        crop_offset="floor",
        mean=mean if normalises else (0.0,) * len(mean),
        std=std if normalises else (1.0,) * len(std),
        class_names=tuple(names),
    )


def _names(value: Any) -> list[str]:
    """Class names from a list, or from a dictionary with their numbers; none where they are placeholders."""
    if isinstance(value, Mapping):
        numbered = {int(number): name for number, name in value.items()}
        if sorted(numbered) != list(range(len(numbered))):
            raise ValueError(f"the classes are numbered {sorted(numbered)[:8]} ...; expected all numbers from 0.")
        value = [numbered[number] for number in range(len(numbered))]
    names = [str(name) for name in value or []]
    # transformers fills in for names that it does not know. ImageNet has two cranes and two maillots, which need their
    # numbers to be told apart.
    if all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        return []
    twice = {name for name in names if names.count(name) > 1}
    return [f"{name} ({number})" if name in twice else name for number, name in enumerate(names)]


def _timm(config: LeViTConfig, preprocessing: Preprocessing, infix: str = "") -> dict[str, dict[str, Any]]:
    variants = {name: LeViTConfig(**sizes) for name, sizes in VARIANTS.items()}
    names = [
        name
        for name, variant in variants.items()
        if variant.activation == config.activation and not differences(variant, config)
    ]
    name = names[0] if names else "levit_256"
    model_args: dict[str, Any] = {} if config.image_size == (224, 224) else {"img_size": list(config.image_size)}
    if config.in_channels != 3:
        model_args["in_chans"] = config.in_channels
    if not config.distillation:
        model_args["distilled"] = False
    if not names:
        model_args |= {"embed_dim": list(config.dim), "key_dim": config.key_dim[0], "num_heads": list(config.heads)}
        model_args |= {"depth": list(config.depth), "stem_type": f"s{config.patch_size}"}
        model_args |= {"act_layer": config.activation}
    pretrained = {
        "num_classes": config.num_classes,
        "input_size": [preprocessing.channels, *preprocessing.image_size],
        "fixed_input_size": True,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_ratio,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "first_conv": "stem.conv1.linear",
        "classifier": ["head.linear", "head_dist.linear"] if config.distillation else "head.linear",
    }
    content: dict[str, Any] = {
        "architecture": name.replace("levit", f"levit{infix}"),
        "num_classes": config.num_classes,
        "num_features": config.dim[-1],
        "pretrained_cfg": pretrained,
    }
    if preprocessing.class_names:
        content["label_names"] = list(preprocessing.class_names)
    if model_args:
        content["model_args"] = model_args
    return {CONFIG: content}


def _transformers(config: LeViTConfig, preprocessing: Preprocessing) -> dict[str, dict[str, Any]]:
    height, width = preprocessing.image_size
    if height != width or preprocessing.crop_offset != "floor":
        raise ValueError(
            f"`preprocessing` has `image_size` {preprocessing.image_size} and `crop_offset` "
            f"{preprocessing.crop_offset!r}; transformers' `LevitImageProcessor` has squares and 'floor'. Use "
            "`dataclasses.replace(preprocessing, crop_offset='floor')`, one pixel off for some images, or a path that "
            "does not end in model.safetensors, next to which no `preprocessor_config.json` is written."
        )
    shortest = _shortest_edge(int(height / preprocessing.crop_ratio))
    heads = "ForImageClassificationWithTeacher" if config.distillation else "ForImageClassification"
    names = preprocessing.class_names or [f"LABEL_{number}" for number in range(config.num_classes)]
    model = {
        "model_type": "levit",
        "architectures": [f"Levit{heads if config.num_classes else 'Model'}"],
        "image_size": height,
        "num_channels": config.in_channels,
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
        "patch_size": config.patch_size,
        "hidden_sizes": list(config.dim),
        "num_attention_heads": list(config.heads),
        "depths": list(config.depth),
        "key_dim": list(config.key_dim),
        "drop_path_rate": config.drop_path or 0,
        "mlp_ratio": list(config.mlp_mult),
        "attention_ratio": [value // key for value, key in zip(config.value_dim, config.key_dim, strict=True)],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    processor = {
        "image_processor_type": "LevitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shortest},
        "resample": _RESAMPLE.index(preprocessing.interpolation),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    return {CONFIG: model, PROCESSOR: processor}


def _ratio(kept: int, resized: int) -> float:
    """The ratio of two sizes, such that `int(kept / ratio)` is `resized`."""
    ratio = kept / resized
    return ratio if int(kept / ratio) == resized else math.nextafter(ratio, 0)


def _shortest_edge(resized: int) -> int:
    """The number that `LevitImageProcessor` makes into `resized` pixels."""
    guess = round(resized / _SHORTEST_EDGE)
    for size in (guess, guess - 1, guess + 1):
        if int(_SHORTEST_EDGE * size) == resized:
            return size
    raise ValueError(
        f"`preprocessing` resizes the shorter edge to {resized} pixels, which transformers' `LevitImageProcessor` "
        "cannot: it multiplies whole numbers by 256 / 224. Change `crop_ratio` slightly."
    )
