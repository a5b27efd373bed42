import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._config import Activation, ActivationName, LeViTConfig
from .._variants import VARIANTS


# Our activations, by timm's names.
_TIMM_ACTIVATIONS: dict[str, ActivationName] = {
    "hard_swish": "hard_swish",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
}

# Keywords with one number for each stage: our name, transformers' and timm's.
_PER_STAGE = (
    ("depth", "depths", "depth"),
    ("dim", "hidden_sizes", "embed_dim"),
    ("heads", "num_attention_heads", "num_heads"),
)


class Hints(NamedTuple):
    """The entries of transformers' or timm's `config.json` that describe a model.

    **Attributes:**

    - `where`: the file, for messages.
    - `image_sizes`, `drop_path`, `activation`: not visible in the shapes of the weights.
    - `expected`: keywords to check against the shapes.
    """

    where: str
    image_sizes: list[tuple[int, int]]
    drop_path: float | None
    activation: Activation | None
    expected: Mapping[str, Any]

    def applied(self, config: LeViTConfig) -> LeViTConfig:
        """Adds what the shapes do not show to the configuration that they give.

        **Raises:** `ValueError` if shapes and file describe different models. For example, a weights file that lacks
        whole blocks has the shapes of a smaller model.
        """
        # For a backbone without a classifier, both libraries still give the number of classes of its training.
        expected = {name: value for name, value in self.expected.items() if name != "num_classes" or config.num_classes}
        if wrong := [name for name, value in expected.items() if value != getattr(config, name)]:
            described, found = (
                ", ".join(f"`{name}` {value(name)}" for name in wrong)
                for value in (expected.__getitem__, config.__getattribute__)
            )
            raise ValueError(
                f"{self.where} describes a model with {described}, but the weights have {found}: some are missing, or "
                "they belong to another model. Correct the file, or load the weights from another folder."
            )
        given = {"drop_path": self.drop_path, "activation": self.activation}
        return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})


def read_hints(content: Mapping[str, Any], where: str) -> Hints:
    """Reads the known entries of the right type and ignores the rest, since the file is not ours.

    **Raises:** `ValueError` for an activation that levitax does not have.
    """
    model, pretrained = (_mapping(content.get(name)) for name in ("model_args", "pretrained_cfg"))
    input_size = pretrained.get("input_size")
    sizes: list[Any] = [content.get("image_size"), model.get("img_size")]
    sizes += [input_size[1:]] if isinstance(input_size, list) else []
    image_sizes = [(size, size) if _is_integer(size) else tuple(size) for size in sizes if _is_size(size)]
    drop_path = content.get("drop_path_rate")
    # timm's name of a model implies its sizes, which `model_args` may override.
    keywords = VARIANTS.get(str(content.get("architecture")).replace("levit_conv_", "levit_"))
    variant = LeViTConfig(**keywords) if keywords else None
    expected: dict[str, Any] = {}
    for name, of_transformers, of_timm in _PER_STAGE:
        value = content.get(of_transformers, model.get(of_timm, getattr(variant, name, None)))
        if _is_integers(value):
            expected[name] = tuple(value)
    classes = content.get("id2label", content.get("num_labels", content.get("num_classes")))
    classes = len(classes) if isinstance(classes, Mapping) else classes
    if _is_integer(classes):
        expected["num_classes"] = classes
    return Hints(
        where,
        image_sizes,
        float(drop_path) if isinstance(drop_path, int | float) and 0 <= drop_path < 1 else None,
        _activation(variant, model.get("act_layer"), where),
        expected,
    )


def _activation(variant: LeViTConfig | None, act_layer: Any, where: str) -> Activation | None:
    """timm's activation, by the name of the model and its `act_layer`."""
    if act_layer is None:
        return variant.activation if variant else None
    name = _TIMM_ACTIVATIONS.get(str(act_layer))
    if name is None:
        raise ValueError(
            f"{where} has the `act_layer` {act_layer!r}; expected one of {', '.join(_TIMM_ACTIVATIONS)}. Correct or "
            "remove it."
        )
    return name


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_size(value: Any) -> bool:
    return _is_integer(value) or (_is_integers(value) and len(value) == 2)


def _is_integers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_integer, value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
