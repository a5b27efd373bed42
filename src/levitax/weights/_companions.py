"""The JSON files of timm and transformers next to the weights, with information that the arrays do not contain."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._checks import name_of_function
from .._config import LeViTConfig
from .._variants import VARIANTS
from ..data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ._layouts import LayoutName
from ._recognise import differences


CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

# The names of Pillow's filters, by their numbers, which transformers uses.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

# The entries of both libraries' `config.json`. Writing for one library also removes those that describe an older model
# for the other.
_OWN = (
    *("architecture", "model_args", "pretrained_cfg", "label_names", "num_classes", "num_features", "global_pool"),
    *("model_type", "architectures", "image_size", "num_channels", "kernel_size", "stride", "padding", "patch_size"),
    *("hidden_sizes", "num_attention_heads", "depths", "key_dim", "drop_path_rate", "mlp_ratio", "attention_ratio"),
    *("id2label", "label2id", "num_labels", "down_ops"),
)

# `LevitImageProcessor` resizes the shorter edge to this times `size["shortest_edge"]`.
_SHORTEST_EDGE = 256 / 224


def read_preprocessing(companions: Mapping[str, Mapping[str, Any]], where: str) -> Preprocessing | None:
    """The preprocessing in timm's `config.json` or transformers' two files, by file name; `None` if they have none.

    **Raises:** `ValueError` for values out of range, and for steps that `Preprocessing` does not have.
    """
    config, processor = companions.get(CONFIG, {}), companions.get(PROCESSOR, {})
    pretrained = config.get("pretrained_cfg", config)
    try:
        if isinstance(pretrained, Mapping) and ("mean" in pretrained or "std" in pretrained):
            return _from_timm(pretrained, _names("label_names", config) or _names("label_names", pretrained))
        if processor:
            return _from_transformers(processor, _names("id2label", config))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The preprocessing in the JSON next to {where} cannot be used: {error} Correct it, or use a "
            "`levitax.data.Preprocessing` of your own."
        ) from error
    return None


def companions(layout: LayoutName, config: LeViTConfig, preprocessing: Preprocessing) -> dict[str, dict[str, Any]]:
    """The content of the JSON files next to the weights, by file name; empty for layouts without such files."""
    writers: dict[str, Callable[[LeViTConfig, Preprocessing], dict[str, dict[str, Any]]]] = {
        "timm": _timm,
        "timm_conv": lambda *described: _timm(*described, infix="_conv"),
        "transformers": _transformers,
        "transformers_backbone": _transformers,
    }
    return writers[layout](config, preprocessing) if layout in writers else {}


def _from_timm(fields: Mapping[str, Any], names: Sequence[str]) -> Preprocessing:
    # Missing fields have timm's defaults (`timm.data.resolve_data_config`).
    _field(fields, "crop_mode", "center", lambda value: value == "center", "'center'")
    sizes = _field(
        fields,
        "input_size",
        (3, 224, 224),
        lambda value: _are_numbers(value, int) and len(value) == 3,
        "three integers",
    )
    return Preprocessing(
        image_size=tuple(sizes[1:]),
        crop_ratio=_field(fields, "crop_pct", 0.875, lambda value: _is_number(value) and value > 0, "a number above 0"),
        interpolation=_field(fields, "interpolation", "bicubic", lambda value: isinstance(value, str), "a name"),
        mean=_field(fields, "mean", IMAGENET_MEAN, _are_numbers, "a list of numbers"),
        std=_field(fields, "std", IMAGENET_STD, _are_numbers, "a list of numbers"),
        class_names=tuple(names),
    )


def _from_transformers(fields: Mapping[str, Any], names: Sequence[str]) -> Preprocessing:
    # Missing fields have the defaults of `LevitImageProcessor`.
    for name in ("image_processor_type", "feature_extractor_type"):
        _field(
            fields, name, "Levit", lambda value: str(value).startswith("Levit"), "transformers' 'LevitImageProcessor'"
        )
    for name in ("do_resize", "do_center_crop", "do_rescale"):
        _field(fields, name, True, lambda value: value is True, "true")
    for name in ("do_flip_channel_order", "do_grayscale", "do_pad"):
        _field(fields, name, False, lambda value: value is False, "false")
    is_scale = lambda value: _is_number(value) and abs(255 * value - 1) < 1e-6
    _field(fields, "rescale_factor", 1 / 255, is_scale, "1 / 255")
    size = _edges(fields, "size", ("shortest_edge",))[0]
    rows, columns = _edges(fields, "crop_size", ("height", "width"))
    if rows != columns:
        raise ValueError(f"`crop_size` is {fields['crop_size']}; expected a square.")
    resample = _field(
        fields,
        "resample",
        _RESAMPLE.index("bicubic"),
        lambda value: _is_number(value, int) and 0 <= value < len(_RESAMPLE),
        f"a filter of Pillow, from 0 to {len(_RESAMPLE) - 1}",
    )
    normalises = _field(fields, "do_normalize", True, lambda value: isinstance(value, bool), "true or false")
    mean = _field(fields, "image_mean", IMAGENET_MEAN, _are_numbers, "a list of numbers")
    std = _field(fields, "image_std", IMAGENET_STD, _are_numbers, "a list of numbers")
    return Preprocessing(
        image_size=(rows, columns),
        crop_ratio=_ratio(rows, int(_SHORTEST_EDGE * size)),
        interpolation=_RESAMPLE[resample],
        crop_offset="floor",
        mean=mean if normalises else (0.0,) * len(mean),
        std=std if normalises else (1.0,) * len(std),
        class_names=tuple(names),
    )


def _edges(fields: Mapping[str, Any], name: str, keys: Sequence[str]) -> list[int]:
    """The edges of a size, which is one integer or a dictionary of edges."""
    is_edge = lambda value: _is_number(value, int) and value > 0
    holds = lambda value: (
        is_edge(value) or (isinstance(value, Mapping) and all(is_edge(value.get(key)) for key in keys))
    )
    listed = ", ".join(f"'{key}'" for key in keys)
    value = _field(fields, name, 224, holds, f"one positive integer or a dictionary with {listed}")
    return [value[key] if isinstance(value, Mapping) else value for key in keys]


def _field(fields: Mapping[str, Any], name: str, default: Any, holds: Callable[[Any], bool], expected: str) -> Any:
    """A field, or its default if it is missing or null.

    **Raises:** `ValueError` if `holds` rejects it.
    """
    value = default if fields.get(name) is None else fields[name]
    if not holds(value):
        raise ValueError(f"`{name}` is {value!r}; expected {expected}.")
    return value


def _is_number(value: Any, kind: type = float) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e6


def _are_numbers(value: Any, kind: type = float) -> bool:
    return isinstance(value, list | tuple) and all(_is_number(number, kind) for number in value)


def _names(field: str, config: Mapping[str, Any]) -> list[str]:
    """Class names, from a list or from a dictionary by class number; none if they are placeholders."""
    value = config.get(field) or []
    if isinstance(value, Mapping):
        try:
            value = {int(number): name for number, name in value.items()}
            value = [value[number] for number in range(len(value))]
        except (KeyError, ValueError):
            raise ValueError(
                f"`{field}` has classes by {', '.join(map(repr, list(value)[:8]))} ...; expected all numbers from 0."
            ) from None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"`{field}` is {value!r}; expected a list of class names.")
    # transformers writes placeholders if it has no names. ImageNet has two cranes and two maillots, so we append the
    # numbers of duplicate names.
    if all(name == f"LABEL_{number}" for number, name in enumerate(value)):
        return []
    twice = {name for name in value if value.count(name) > 1}
    return [f"{name} ({number})" if name in twice else name for number, name in enumerate(value)]


def replaced(existing: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """`content`, and the entries of an existing file that neither timm nor transformers reads for a LeViT."""
    return {name: value for name, value in existing.items() if name not in _OWN} | dict(content)


def _timm(config: LeViTConfig, preprocessing: Preprocessing, infix: str = "") -> dict[str, dict[str, Any]]:
    variants = {name: LeViTConfig(**sizes) for name, sizes in VARIANTS.items()}
    names = [
        name
        for name, variant in variants.items()
        if variant.activation == config.activation and not differences(variant, config)
    ]
    name = names[0] if names else "levit_256"
    _check_describes("timm", config)
    if not isinstance(config.activation, str):
        raise ValueError(
            f"`activation` is the function `{name_of_function(config.activation)}`, for which timm's `config.json` has "
            "no name. Use a path that does not end in model.safetensors: then no `config.json` is written."
        )
    if preprocessing.crop_offset != "round":
        raise ValueError(
            f"`preprocessing` has `crop_offset` {preprocessing.crop_offset!r}; timm has 'round'. Use "
            "`dataclasses.replace(preprocessing, crop_offset='round')`, one pixel off for some images. Or use a path "
            "that does not end in model.safetensors: then no `config.json` is written."
        )
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
            "`dataclasses.replace(preprocessing, crop_offset='floor')`, one pixel off for some images. Or use a path "
            "that does not end in model.safetensors: then no `preprocessor_config.json` is written."
        )
    _check_describes("transformers", config, mlp_mult=config.mlp_mult, value_dim=config.value_dim)
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
        # transformers 5.24 rejects fractions here. Our header keeps the value.
        "drop_path_rate": 0,
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


def _check_describes(library: str, config: LeViTConfig, **free: Any) -> None:
    """Raises for a model that the library's configuration cannot describe.

    The configuration has one number for all stages, except for the keywords in `free`, which it can state per stage.
    """
    names = ("image_size", "stages", "dim", "depth", "heads", "patch_size")
    given = {name: getattr(config, name) for name in names}
    wrong = differences(LeViTConfig(**given, key_dim=config.key_dim[0], **free), config)
    # Both libraries need images of whole tokens.
    if any(size % config.patch_size for size in config.image_size):
        wrong.append("image_size")
    if library == "transformers" and config.stages != 3:
        wrong.append("stages")
    if any(value % key for value, key in zip(config.value_dim, config.key_dim, strict=True)):
        wrong.append("value_dim")
    if wrong:
        listed = ", ".join(f"`{name}` {getattr(config, name)}" for name in wrong)
        raise ValueError(
            f"The configuration of {library} cannot describe a LeViT with {listed}. Use our own layout, or a path that "
            "does not end in model.safetensors: then no `config.json` is written."
        )


def _ratio(kept: int, resized: int) -> float:
    """The ratio of two sizes, adjusted so that `int(kept / ratio)` is exactly `resized`."""
    ratio = kept / resized
    return ratio if int(kept / ratio) == resized else math.nextafter(ratio, 0)


def _shortest_edge(resized: int) -> int:
    """The `size["shortest_edge"]` from which `LevitImageProcessor` makes `resized` pixels."""
    guess = round(resized / _SHORTEST_EDGE)
    for size in (guess, guess - 1, guess + 1):
        if int(_SHORTEST_EDGE * size) == resized:
            return size
    raise ValueError(
        f"`preprocessing` resizes the shorter edge to {resized} pixels, which transformers' `LevitImageProcessor` "
        "cannot do: it multiplies whole numbers by 256 / 224. Change `crop_ratio` slightly."
    )
