import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._config import ActivationName, LeViTConfig
from .._variants import VARIANTS


# By timm's names.
_TIMM_ACTIVATIONS: dict[str, ActivationName] = {
    "hard_swish": "hard_swish",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
}

# Ours, transformers' and timm's names of keywords with a number for each stage.
_PER_STAGE = (
    ("depth", "depths", "depth"),
    ("dim", "hidden_sizes", "embed_dim"),
    ("heads", "num_attention_heads", "num_heads"),
)


class Hints(NamedTuple):
    """What the `config.json` of transformers or timm says of a model.

    **Attributes:**

    - `where`: whose words these are, for messages.
    - `image_sizes`, `drop_path`, `activation`: what shapes do not show.
    - `shown`: keywords that shapes show as well.
    """

    where: str
    image_sizes: list[tuple[int, int]]
    drop_path: float | None
    activation: ActivationName | None
    shown: Mapping[str, Any]

    def applied(self, config: LeViTConfig) -> LeViTConfig:
        """The configuration that the shapes make, with what they do not show.

        **Raises:** `ValueError` if shapes and words are of different models: a file that lacks whole blocks makes a
        smaller one.
        """
        # Weights without a classifier are a backbone, of which both libraries name the classes it was trained with.
        shown = {name: value for name, value in self.shown.items() if name != "num_classes" or config.num_classes}
        if wrong := [name for name, value in shown.items() if value != getattr(config, name)]:
            described, found = (
                ", ".join(f"`{name}` {value(name)}" for name in wrong)
                for value in (shown.__getitem__, config.__getattribute__)
            )
            raise ValueError(
                f"{self.where} describes a model of {described}, and the weights are of {found}: they are not all "
                "there, or of another model. Correct the file, or load the weights from another folder."
            )
        said = {"drop_path": self.drop_path, "activation": self.activation}
        return dataclasses.replace(config, **{name: value for name, value in said.items() if value is not None})


def read_hints(content: Mapping[str, Any], where: str) -> Hints:
    """Takes what is there and of the right kind, and passes over the rest: the file is not ours.

    **Raises:** `ValueError` for an activation that no LeViT here has.
    """
    model, pretrained = (_mapping(content.get(name)) for name in ("model_args", "pretrained_cfg"))
    input_size = pretrained.get("input_size")
    sizes: list[Any] = [content.get("image_size"), model.get("img_size")]
    sizes += [input_size[1:]] if isinstance(input_size, list) else []
    image_sizes = [(size, size) if _is_integer(size) else tuple(size) for size in sizes if _is_size(size)]
    drop_path = content.get("drop_path_rate")
    # timm's name of a model stands for its sizes, which `model_args` may change.
    keywords = VARIANTS.get(str(content.get("architecture")).replace("levit_conv_", "levit_"))
    variant = LeViTConfig(**keywords) if keywords else None
    shown: dict[str, Any] = {}
    for name, of_transformers, of_timm in _PER_STAGE:
        value = content.get(of_transformers, model.get(of_timm, getattr(variant, name, None)))
        if _is_integers(value):
            shown[name] = tuple(value)
    classes = content.get("id2label", content.get("num_labels", content.get("num_classes")))
    classes = len(classes) if isinstance(classes, Mapping) else classes
    if _is_integer(classes):
        shown["num_classes"] = classes
    return Hints(
        where,
        image_sizes,
        float(drop_path) if isinstance(drop_path, int | float) and 0 <= drop_path < 1 else None,
        _activation(variant, model.get("act_layer"), where),
        shown,
    )


def _activation(variant: LeViTConfig | None, act_layer: Any, where: str) -> ActivationName | None:
    """The activation that timm gives a model by its name and keyword."""
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
