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


class Hints(NamedTuple):
    """What the `config.json` of transformers or timm says that shapes do not."""

    where: str
    image_sizes: list[tuple[int, int]]
    drop_path: float | None
    depth: tuple[int, ...] | None
    activation: ActivationName | None

    def applied(self, config: LeViTConfig) -> LeViTConfig:
        """The configuration that the shapes make, with what is said beside it.

        **Raises:** `ValueError` if the two speak of different models: a file that lacks whole blocks makes a smaller
        one.
        """
        if self.depth is not None and self.depth != config.depth:
            raise ValueError(
                f"{self.where} tells of stages of {self.depth} blocks, and the weights are of {config.depth}: they are "
                "not all there, or of another model."
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
    depths = content.get("depths")
    return Hints(
        where,
        image_sizes,
        float(drop_path) if isinstance(drop_path, int | float) and 0 <= drop_path < 1 else None,
        tuple(depths) if isinstance(depths, list) and _is_integers(depths, len(depths)) else None,
        _activation(content.get("architecture"), model.get("act_layer"), where),
    )


def _activation(architecture: Any, act_layer: Any, where: str) -> ActivationName | None:
    """The activation that timm gives a model of this name and keyword."""
    if act_layer is None:
        sizes = VARIANTS.get(str(architecture).replace("levit_conv_", "levit_"))
        return LeViTConfig(**sizes).activation if sizes else None
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
    return _is_integer(value) or _is_integers(value, 2)


def _is_integers(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length and all(map(_is_integer, value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
