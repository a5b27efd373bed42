import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.typing import DTypeLike

from ._checks import as_flag, as_integer, as_integers, as_rate, check_choice
from .nn import ACTIVATIONS


PerStage: TypeAlias = int | Sequence[int]
NetworkName: TypeAlias = Literal["paper", "vit_pytorch"]
ActivationName: TypeAlias = Literal["hard_swish", "silu", "gelu", "relu"]


class BlockSizes(NamedTuple):
    """The sizes of one block: `out_dim` and `stride` differ from `dim` and 1 only where it shrinks the grid."""

    grid: tuple[int, int]
    dim: int
    out_dim: int
    stride: int
    heads: int
    key_dim: int
    value_dim: int
    hidden_dim: int


@dataclasses.dataclass(frozen=True, init=False)
class LeViTConfig:
    """What a [`levitax.LeViT`][] is: its keywords, checked, with one number for each stage.

    Immutable and hashable; `to_dict` and `from_dict` go to and from what JSON can hold. A model is made from one by
    `eqx.nn.make_with_state(levitax.LeViT)(**config.to_dict(), key=key)`, and has it as `model.config`.
    """

    image_size: tuple[int, int]
    num_classes: int
    stages: int
    dim: tuple[int, ...]
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_mult: tuple[int, ...]
    dropout: float
    in_channels: int
    patch_size: int
    key_dim: tuple[int, ...]
    value_dim: tuple[int, ...]
    subsample_heads: tuple[int, ...]
    subsample_value_ratio: tuple[int, ...]
    subsample_mlp_mult: tuple[int, ...]
    activation: ActivationName
    drop_path: float
    distillation: bool
    network: NetworkName
    remat: bool
    dtype: str

    def __init__(
        self,
        *,
        image_size: PerStage = 224,
        num_classes: int = 1000,
        stages: int = 3,
        dim: PerStage = (256, 384, 512),
        depth: PerStage = 4,
        heads: PerStage = (4, 6, 8),
        mlp_mult: PerStage = 2,
        dropout: float = 0.0,
        in_channels: int = 3,
        patch_size: int = 16,
        key_dim: PerStage = 32,
        value_dim: PerStage | None = None,
        subsample_heads: PerStage | None = None,
        subsample_value_ratio: PerStage | None = None,
        subsample_mlp_mult: PerStage = 2,
        activation: ActivationName = "hard_swish",
        drop_path: float = 0.0,
        distillation: bool | None = None,
        network: NetworkName = "paper",
        remat: bool = False,
        dtype: DTypeLike = "float32",
    ):
        """**Arguments:** those of [`levitax.LeViT`][] but `key`.

        **Raises:** what [`levitax.LeViT`][] raises.
        """

        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        def per_stage(name: str, value: PerStage) -> None:
            put(name, as_integers(name, value, self.stages, "each stage"))

        def per_subsample(name: str, value: PerStage) -> None:
            put(name, as_integers(name, value, self.stages - 1, "each shrinking attention"))

        check_choice("network", network, ("paper", "vit_pytorch"))
        check_choice("activation", activation, ACTIVATIONS)
        paper = network == "paper"
        put("network", network)
        put("image_size", as_integers("image_size", image_size, 2, "height and width"))
        put("in_channels", as_integer("in_channels", in_channels))
        check_choice("patch_size", patch_size, (16, 8, 4))
        put("patch_size", as_integer("patch_size", patch_size))
        put("num_classes", as_integer("num_classes", num_classes, minimum=0))
        put("stages", as_integer("stages", stages))
        per_stage("dim", dim)
        per_stage("depth", depth)
        per_stage("heads", heads)
        per_stage("mlp_mult", mlp_mult)
        per_stage("key_dim", key_dim)
        per_stage("value_dim", [2 * size for size in self.key_dim] if value_dim is None else value_dim)
        if subsample_heads is None:
            fits = [max(channels // size, 1) for channels, size in zip(self.dim, self.key_dim, strict=True)]
            subsample_heads = (fits if paper else [2 * number for number in self.heads])[:-1]
        if subsample_value_ratio is None:
            subsample_value_ratio = 4 if paper else 2
        per_subsample("subsample_heads", subsample_heads)
        per_subsample("subsample_value_ratio", subsample_value_ratio)
        per_subsample("subsample_mlp_mult", subsample_mlp_mult)
        put("activation", activation)
        put("dropout", as_rate("dropout", dropout))
        put("drop_path", as_rate("drop_path", drop_path))
        put("distillation", as_flag("distillation", paper if distillation is None else distillation))
        put("remat", as_flag("remat", remat))
        put("dtype", _floating_name(dtype))
        if paper and self.dim[0] < self.patch_size // 2:
            raise ValueError(
                f"`dim` is {self.dim}; expected at least {self.patch_size // 2} in the first stage: each of the stem's "
                f"convolutions before the last has half the channels of the next, at `patch_size` {self.patch_size}."
            )
        for stage in range(self.stages - 1):
            if self.grid(stage) == (1, 1):
                raise ValueError(
                    f"`image_size` {self.image_size} is too small for {self.stages} stages at {self.patch_size} pixels "
                    f"a token: stage {stage + 1} has a single token, and the shrinking attention after it nothing to "
                    "shrink. Use larger images, a smaller `patch_size` (16, 8 or 4) or fewer `stages`."
                )

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of tokens in a stage; `stage` counts from 0, or from the end if negative.

        Each convolution of the stem and each shrinking attention takes `size` to `ceil(size / 2)`.
        """
        stage = self._stage(stage)
        height, width = self.image_size
        pixels = self.patch_size * 2**stage
        return -(-height // pixels), -(-width // pixels)

    def block_sizes(self, stage: int) -> tuple[BlockSizes, ...]:
        """The blocks of `stage`, counted as in `grid`. Every stage but the first begins with the one that shrinks."""
        stage = self._stage(stage)
        dim, key_dim = self.dim[stage], self.key_dim[stage]
        block = BlockSizes(
            grid=self.grid(stage),
            dim=dim,
            out_dim=dim,
            stride=1,
            heads=self.heads[stage],
            key_dim=key_dim,
            value_dim=self.value_dim[stage],
            hidden_dim=self.mlp_mult[stage] * dim,
        )
        blocks = (block,) * self.depth[stage]
        if stage == 0:
            return blocks
        before = stage - 1
        subsample = BlockSizes(
            grid=self.grid(before),
            dim=self.dim[before],
            out_dim=dim,
            stride=2,
            heads=self.subsample_heads[before],
            key_dim=self.key_dim[before],
            value_dim=self.subsample_value_ratio[before] * self.key_dim[before],
            hidden_dim=self.subsample_mlp_mult[before] * dim,
        )
        return (subsample, *blocks)

    def _stage(self, stage: int) -> int:
        number = as_integer("stage", stage, minimum=-self.stages)
        if number >= self.stages:
            raise ValueError(f"`stage` is {number}; expected one of the {self.stages}, counted from 0.")
        return number % self.stages

    def to_dict(self) -> dict[str, Any]:
        """The fields, with lists in place of tuples, as JSON has them."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LeViTConfig":
        """The inverse of `to_dict`. What is not among `fields` has its default.

        **Raises:** `TypeError` for a field that does not exist, and what [`levitax.LeViT`][] raises.
        """
        if not isinstance(fields, Mapping):
            raise TypeError(f"`fields` is of type `{type(fields).__name__}`; expected a dictionary, as of `to_dict`.")
        return cls(**fields)


def _floating_name(dtype):
    try:
        # `None` would be float64.
        name = None if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name is None or not jnp.issubdtype(name, jnp.floating):
        raise ValueError(f"`dtype` is {dtype!r}; expected a floating-point type such as 'float32' or 'bfloat16'.")
    return name
