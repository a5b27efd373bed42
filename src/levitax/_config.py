"""The keywords of a LeViT and their meaning, and the configuration that checks them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, get_args, Literal, NamedTuple, TypeAlias, TypedDict, Unpack

from jax.typing import DTypeLike

from ._array_checks import as_floating
from ._checks import as_choice, as_flag, as_function, as_integer, as_integers, as_rate, check_keywords, name_of_function


PerStage: TypeAlias = int | Sequence[int]
NetworkName: TypeAlias = Literal["paper", "vit_pytorch"]
ActivationName: TypeAlias = Literal["hard_swish", "silu", "gelu", "relu"]
Activation: TypeAlias = ActivationName | Callable[[Any], Any]
Pooling: TypeAlias = Literal["mean", "none"]


class Overrides(TypedDict, total=False):
    """The keywords of a [`levitax.LeViT`][] that the variants take too.

    **Arguments:**

    - `image_size`: pixels, one number or `(height, width)`. Any size works. By default 224.
    - `num_classes`: by default 1,000. With 0 there is no head, and the model returns the mean token of the last stage.
    - `in_channels`: channels of the image. By default 3.
    - `patch_size`: pixels along each side of a token of the first stage: 16, 8 or 4, from a stem of 4, 3 or 2
        convolutions. By default 16.
    - `activation`: "hard_swish", "silu", "gelu" or "relu", or a function of an array. By default the paper's,
        "hard_swish".
    - `norm`: makes the normalisations in place of [`levitax.nn.BatchNorm`][], see [`levitax.nn.NormFactory`][]. With
        `network="vit_pytorch"` only the attention has them.
    - `attention_bias`: makes the attention biases in place of [`levitax.nn.AttentionBias`][], see
        [`levitax.nn.BiasFactory`][].
    - `pooling`: "mean", the default, or "none": the head, or without a head the result, is then computed for each token
        of the last stage.
    - `distillation`: whether there is a second head, which learns from a teacher. In training the model then returns a
        [`levitax.nn.DistilledLogits`][], in inference mode the mean of both heads' logits. By default `True`.
    - `dropout`: rate on the attention weights, after attention, and twice in the MLP. Blocks that downsample have no
        dropout. The paper has none. By default 0.
    - `head_dropout`: rate on the features before the classifiers. The paper has none. By default 0.
    - `drop_path`: rate of stochastic depth, the same in every residual branch. By default 0; LeViT-384 has 0.1.
    - `remat`: recompute each block in the backward pass instead of storing its intermediate results. By default
        `False`.
    - `dtype`: dtype of the computation, by default "float32". Parameters, statistics, softmax and logits are always
        float32.
    """

    image_size: PerStage
    num_classes: int
    in_channels: int
    patch_size: int
    activation: Activation
    norm: Callable[..., Any] | None
    attention_bias: Callable[..., Any] | None
    pooling: Pooling
    distillation: bool | None
    dropout: float
    head_dropout: float
    drop_path: float
    remat: bool
    dtype: DTypeLike


class LeViTKeywords(Overrides, total=False):
    """The keywords of a [`levitax.LeViT`][]. The defaults are LeViT-256.

    **Arguments:** the keywords of [`levitax.Overrides`][], and

    - `stages`: number of resolutions. By default 3.
    - `dim`: channels, per stage: one integer for each stage, or one for all. By default `(256, 384, 512)`.
    - `depth`: blocks, per stage, without the one that downsamples. By default 4.
    - `heads`: attention heads, per stage. By default `(4, 6, 8)`.
    - `mlp_mult`: hidden channels of the MLP over `dim`, per stage. By default 2.
    - `key_dim`: channels of queries and keys in each head, per stage. By default 32. A downsampling attention uses the
        `key_dim` of the stage before it.
    - `value_dim`: channels of values in each head, per stage. By default twice `key_dim`.
    - `subsample_heads`: heads of each of the `stages - 1` downsampling attentions, which the official code calls
        subsampling. By default `dim // key_dim` of the stage before.
    - `subsample_value_ratio`: channels of the values over `key_dim`, in the downsampling attentions. By default 4.
    - `subsample_mlp_mult`: `mlp_mult` of the MLP after each downsampling attention. By default 2.
    - `network`: "paper", the default, or "vit_pytorch" for the network of that name in the `vit-pytorch` package. Its
        stem, MLP and head have biases instead of normalisations. Its stem has the widths 32, 64 and 128, and no
        activations. Its attention has GELU, and biases from N(0, 1) times `sqrt(key_dim)`. Its downsampling attentions
        have twice the heads of their stage and a value ratio of 2. By default this network has one head. (With two
        heads, the original returns their logits separately in inference mode too.) All published weights are for
        "paper".
    """

    stages: int
    dim: PerStage
    depth: PerStage
    heads: PerStage
    mlp_mult: PerStage
    key_dim: PerStage
    value_dim: PerStage | None
    subsample_heads: PerStage | None
    subsample_value_ratio: PerStage | None
    subsample_mlp_mult: PerStage
    network: NetworkName


class BlockSizes(NamedTuple):
    """The sizes of one block. `out_dim` and `stride` differ from `dim` and 1 only in a block that downsamples."""

    grid: tuple[int, int]
    dim: int
    out_dim: int
    stride: int
    heads: int
    key_dim: int
    value_dim: int
    hidden_dim: int


def _keyword(default: Any, check: Callable[[str, Any], Any]) -> Any:
    """Declares a keyword: its default, and the function of name and value that checks and converts it. A default may
    be a function of the fields before it."""
    return dataclasses.field(metadata={"default": default, "check": lambda config: check})


def _per_stage(default: Any) -> Any:
    check = lambda config: partial(as_integers, length=config.stages, each="each stage")
    return dataclasses.field(metadata={"default": default, "check": check})


def _per_downsampling(default: Any) -> Any:
    check = lambda config: partial(as_integers, length=config.stages - 1, each="each downsampling attention")
    return dataclasses.field(metadata={"default": default, "check": check})


def _subsample_heads(config: "LeViTConfig") -> list[int]:
    """The paper's C / D: the channels of a stage over its `key_dim`."""
    if config.network == "vit_pytorch":
        return [2 * heads for heads in config.heads[:-1]]
    return [max(dim // key_dim, 1) for dim, key_dim in zip(config.dim[:-1], config.key_dim[:-1], strict=True)]


def _as_activation(name: str, value: Any) -> Any:
    if callable(value) or isinstance(value, Mapping):
        return as_function(name, value)
    return as_choice(name, value, get_args(ActivationName))


def _as_factory(name: str, value: Any) -> Any:
    return None if value is None else as_function(name, value)


@dataclasses.dataclass(frozen=True, init=False)
class LeViTConfig:
    """The keywords of a [`levitax.LeViT`][], checked, with one number for each stage.

    Immutable and hashable. `to_dict` and `from_dict` convert it to and from a dictionary for JSON. The configuration of
    a model is `model.config`. To make a model from a configuration, call
    `eqx.nn.make_with_state(levitax.LeViT)(**vars(config), key=key)`.
    """

    network: NetworkName = _keyword("paper", partial(as_choice, choices=get_args(NetworkName)))
    image_size: tuple[int, int] = _keyword(224, partial(as_integers, length=2, each="height and width"))
    num_classes: int = _keyword(1000, partial(as_integer, minimum=0))
    in_channels: int = _keyword(3, as_integer)
    patch_size: int = _keyword(16, partial(as_choice, choices=(16, 8, 4)))
    stages: int = _keyword(3, as_integer)
    dim: tuple[int, ...] = _per_stage((256, 384, 512))
    depth: tuple[int, ...] = _per_stage(4)
    heads: tuple[int, ...] = _per_stage((4, 6, 8))
    mlp_mult: tuple[int, ...] = _per_stage(2)
    key_dim: tuple[int, ...] = _per_stage(32)
    value_dim: tuple[int, ...] = _per_stage(lambda config: [2 * size for size in config.key_dim])
    subsample_heads: tuple[int, ...] = _per_downsampling(_subsample_heads)
    subsample_value_ratio: tuple[int, ...] = _per_downsampling(lambda config: 4 if config.network == "paper" else 2)
    subsample_mlp_mult: tuple[int, ...] = _per_downsampling(2)
    activation: Activation = _keyword("hard_swish", _as_activation)
    norm: Callable[..., Any] | None = _keyword(None, _as_factory)
    attention_bias: Callable[..., Any] | None = _keyword(None, _as_factory)
    pooling: Pooling = _keyword("mean", partial(as_choice, choices=get_args(Pooling)))
    distillation: bool = _keyword(lambda config: config.network == "paper", as_flag)
    dropout: float = _keyword(0.0, as_rate)
    head_dropout: float = _keyword(0.0, as_rate)
    drop_path: float = _keyword(0.0, as_rate)
    remat: bool = _keyword(False, as_flag)
    dtype: str = _keyword("float32", as_floating)

    def __init__(self, **keywords: Unpack[LeViTKeywords]):
        """**Arguments:**

        - `keywords`: any of [`levitax.LeViTKeywords`][].

        **Raises:** the errors of [`levitax.LeViT`][].
        """
        check_keywords(keywords, LeViTKeywords)
        for field in dataclasses.fields(self):
            default, check = field.metadata["default"], field.metadata["check"](self)
            value = keywords.get(field.name, default)
            if callable(default) and (value is None or value is default):
                value = default(self)
            object.__setattr__(self, field.name, check(field.name, value))
        self._check_together()

    def _check_together(self) -> None:
        if self.network == "paper" and self.dim[0] < self.patch_size // 2:
            raise ValueError(
                f"`dim` is {self.dim}; expected at least {self.patch_size // 2} in the first stage: each of the stem's "
                f"convolutions before the last has half the channels of the next, at `patch_size` {self.patch_size}."
            )
        for stage in range(self.stages - 1):
            if self.grid(stage) == (1, 1):
                raise ValueError(
                    f"`image_size` {self.image_size} is too small for {self.stages} stages at `patch_size` "
                    f"{self.patch_size}: stage {stage + 1} has a single token, which cannot be downsampled. Use larger "
                    "images, a smaller `patch_size` (16, 8 or 4) or fewer `stages`."
                )

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of tokens in a stage; `stage` counts from 0, or from the end if negative.

        Each convolution of the stem and each downsampling attention takes `size` to `ceil(size / 2)`.
        """
        stage = self._stage(stage)
        height, width = self.image_size
        pixels = self.patch_size * 2**stage
        return -(-height // pixels), -(-width // pixels)

    def block_sizes(self, stage: int) -> tuple[BlockSizes, ...]:
        """The blocks of `stage`, counted as in `grid`. Every stage but the first begins with a block that
        downsamples."""
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
        """Converts the fields to a dictionary for JSON, with lists instead of tuples.

        In place of a function, the dictionary has its name, as `{"function": "package.module.name"}`. `from_dict` then
        asks for the function.
        """
        return {name: _as_json(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LeViTConfig":
        """The inverse of `to_dict`. A field that is not in `fields` has its default.

        **Raises:** `TypeError` for a field that does not exist, `ValueError` for the name of a function in place of the
        function, and the errors of [`levitax.LeViT`][].
        """
        if not isinstance(fields, Mapping):
            raise TypeError(f"`fields` is of type `{type(fields).__name__}`; expected a dictionary, as of `to_dict`.")
        return cls(**fields)


def _as_json(value: Any) -> Any:
    if callable(value):
        return {"function": name_of_function(value)}
    return list(value) if isinstance(value, tuple) else value


DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        field.name: None if callable(field.metadata["default"]) else field.metadata["default"]
        for field in dataclasses.fields(LeViTConfig)
    }
)
"""The default of each keyword, or `None` if it depends on other keywords."""
