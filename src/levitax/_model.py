import math
from functools import partial
from typing import Any, TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from . import nn
from ._checks import check_axis, check_image
from ._config import ActivationName, BlockSizes, LeViTConfig, NetworkName, PerStage
from ._keys import as_key, split_key


if TYPE_CHECKING:
    # Which of the two it is depends on mode and heads, which the type does not know. With the union of both, every use
    # of the logits of one head would be an error to a type checker; `Any` in it lets both pass.
    Logits: TypeAlias = Array | Any
else:
    Logits: TypeAlias = Float[Array, " classes"] | nn.DistilledLogits


class LeViT(eqx.Module):
    """LeViT, "a Vision Transformer in ConvNet's clothing for faster inference" (Graham et al. 2021, arXiv 2104.01136).

    A convolutional stem makes tokens of 16x16 pixels; three stages of attention and MLP blocks follow, each on a grid
    half the size of the one before; the mean token goes to one or two linear classifiers.

    It holds batch statistics, so it is made together with an `eqx.nn.State`:

    ```python
    model, state = eqx.nn.make_with_state(levitax.LeViT)(image_size=224, num_classes=1000, key=key)
    logits, state = levitax.batched(model)(images, state, key=key)
    ```

    **Attributes:**

    - `stem`: a [`levitax.nn.Stem`][].
    - `stages`: a [`levitax.nn.Stage`][] for each resolution.
    - `head`: a [`levitax.nn.DistilledHead`][], a [`levitax.nn.NormLinear`][], or `None` if `num_classes` is 0.
    - `config`: the [`levitax.LeViTConfig`][] of the keywords.
    """

    stem: nn.Stem
    stages: tuple[nn.Stage, ...]
    head: nn.NormLinear | nn.DistilledHead | None
    config: LeViTConfig = eqx.field(static=True)

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
        key: PRNGKeyArray,
    ):
        """The defaults are LeViT-256. Where "per stage" is written, one integer stands for all stages.

        **Arguments:**

        - `image_size`: pixels, one number or `(height, width)`; any size.
        - `num_classes`: 0 leaves the head off, and the model returns the mean token of the last stage.
        - `stages`: number of resolutions.
        - `dim`: channels, per stage.
        - `depth`: blocks, per stage, not counting the one that shrinks the grid.
        - `heads`: attention heads, per stage.
        - `mlp_mult`: hidden channels of the MLP over `dim`, per stage.
        - `dropout`: rate on attention weights, after attention, and twice in the MLP, except in the blocks that shrink
            the grid. The paper has none.
        - `in_channels`: channels of the image.
        - `patch_size`: pixels a side of a token in the first stage: 16, 8 or 4, from a stem of 4, 3 or 2 convolutions.
        - `key_dim`: channels of queries and keys in each head, per stage. The shrinking attention has those of the
            stage before it.
        - `value_dim`: channels of values in each head, per stage; by default twice `key_dim`.
        - `subsample_heads`: heads of each of the `stages - 1` shrinking attentions, which the official code calls
            subsampling; by default `dim // key_dim` of the stage before.
        - `subsample_value_ratio`: their values' channels over `key_dim`; by default 4.
        - `subsample_mlp_mult`: as `mlp_mult`, for the MLP that follows each of them.
        - `activation`: "hard_swish", "silu", "gelu" or "relu".
        - `drop_path`: rate of stochastic depth, the same in every residual branch; 0.1 in LeViT-384, else 0.
        - `distillation`: whether there are two heads, a classifier and one for distillation. In training they return a
            [`levitax.nn.DistilledLogits`][], in inference the mean of their logits. By default there are.
        - `network`: "paper", or "vit_pytorch" for the network of that name in the `vit-pytorch` package, which also has
            the usage example that these keywords come from. It has no normalisation in stem, MLP and head, biases
            instead, stem widths of 32, 64 and 128 without activations, GELU inside attention, attention biases drawn
            from N(0, 1) and multiplied by `sqrt(key_dim)`, shrinking attentions with twice the heads of their stage and
            a value ratio of 2, and by default one head. (Its original returns the logits of two heads apart in
            inference too.) Published weights are the paper's.
        - `remat`: compute each block again in the backward pass instead of keeping what it needs.
        - `dtype`: of the computation. Parameters, statistics, softmax and logits are float32 in any case.
        - `key`: draws the initial weights.

        **Raises:** `TypeError` or `ValueError`, naming the argument, for sizes that are not positive integers, rates
        outside [0, 1), tuples that do not have one number for each stage, unknown names, too few channels for the stem,
        images too small for the stages, and what is no key.
        """
        config = LeViTConfig(
            image_size=image_size,
            num_classes=num_classes,
            stages=stages,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_mult=mlp_mult,
            dropout=dropout,
            in_channels=in_channels,
            patch_size=patch_size,
            key_dim=key_dim,
            value_dim=value_dim,
            subsample_heads=subsample_heads,
            subsample_value_ratio=subsample_value_ratio,
            subsample_mlp_mult=subsample_mlp_mult,
            activation=activation,
            drop_path=drop_path,
            distillation=distillation,
            network=network,
            remat=remat,
            dtype=dtype,
        )
        stem_key, stages_key, head_key = jax.random.split(as_key(key), 3)
        self.config = config
        self.stem = _stem(config, stem_key)
        self.stages = tuple(
            _stage(config, stage, stage_key)
            for stage, stage_key in enumerate(jax.random.split(stages_key, config.stages))
        )
        self.head = make_head(config, head_key)

    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        """**Arguments:**

        - `image`: one image, `(height, width, channels)`, of the size the model was made for. A batch goes through
            [`levitax.batched`][].
        - `state`: the batch statistics that were made with the model.
        - `key`: needed in training where dropout or drop path is active.

        **Returns:** float32 logits `(classes,)`, or a [`levitax.nn.DistilledLogits`][] from two heads in training, or
        the mean token, of `dim[-1]` channels, if `num_classes` is 0; and the new state.

        **Raises:** `TypeError` or `ValueError` if the image is not one floating-point image of that size, channels
        last; if `state` belongs to another model; if a key is missing; or if, in training, no batch axis is there or a
        normalisation sees one value per channel, as the head's does in a batch of one image.
        """
        maps, state = self.features(image, state, key=key)
        return self.classify(maps[-1], state)

    def features(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[tuple[Float[Array, "rows columns dim"], ...], eqx.nn.State]:
        """The map that each stage ends with, as a backbone for detection or segmentation needs them.

        **Arguments:**

        - `image`: `(height, width, channels)`, as in a call.
        - `state`, `key`: as in a call.

        **Returns:** for each stage `(rows, columns, dim)`, in the dtype of the computation; and the new state.

        **Raises:** `TypeError` or `ValueError`, as a call does.
        """
        tokens, state = self._embed(image, state)
        maps = []
        for index, (stage, stage_key) in enumerate(zip(self.stages, split_key(key, len(self.stages)), strict=True)):
            tokens, state = stage(tokens, state, key=stage_key)
            maps.append(tokens.reshape(*self.config.grid(index), -1))
        return tuple(maps), state

    def classify(self, features: Float[Array, "rows columns dim"], state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        """What a call returns, from the last of the maps of `features`: for those who want both.

        **Arguments:**

        - `features`: the last map, `(rows, columns, dim)`.
        - `state`: the one that `features` returned with it.

        **Returns:** float32 logits `(classes,)`, or what else a call returns; and the new state.

        **Raises:** `TypeError` for what is no array of floating-point numbers, such as all maps; `ValueError` for
        another shape.
        """
        expected = (*self.config.grid(-1), self.config.dim[-1])
        check_axis("features", features, -1, expected[-1], "channels")
        if features.shape != expected:
            raise ValueError(
                f"`features` has shape {features.shape}; expected {expected}, the last of the maps of one image. "
                "For a batch use `jax.vmap`."
            )
        x = features.astype(jnp.float32).mean((0, 1))
        return (x, state) if self.head is None else self.head(x, state)

    def attention_maps(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State
    ) -> tuple[tuple[Float[Array, "heads queries tokens"], ...], ...]:
        """What each block attends to, in inference.

        **Arguments:**

        - `image`: `(height, width, channels)`, as in a call.
        - `state`: as in a call.

        **Returns:** for each stage, and in it for each block, the weights `(heads, queries, tokens)` in float32, which
        add up to 1 over the tokens. Queries and tokens are in row-major order on the stage's grid; in the first block
        of a stage after the first, the tokens are those of the stage before.

        **Raises:** `TypeError` or `ValueError` for an image or a state that a call does not take.
        """
        model = eqx.nn.inference_mode(self)
        tokens, state = model._embed(image, state)
        maps = []
        for stage in model.stages:
            maps.append([])
            for block in stage.blocks:
                maps[-1].append(block.attention.weights(tokens, state))
                tokens, state = block(tokens, state)
        return tuple(map(tuple, maps))

    def _embed(self, image, state):
        check_image(image, (*self.config.image_size, self.config.in_channels))
        x, state = self.stem(image.astype(self.config.dtype), state)
        return x.reshape(-1, x.shape[-1]), state


def check_levit(model: Any) -> None:
    """Raises unless `model` is a LeViT, saying where to find the one that is meant."""
    if not isinstance(model, LeViT):
        raise TypeError(
            f"`model` is of type `{type(model).__name__}`; expected a `levitax.LeViT`. Of your own module pass the "
            "LeViT inside, such as `module.backbone`, with the state of the module; of a `Predictor`, `predict.model` "
            "and `predict.state`."
        )


def _stem(config: LeViTConfig, key: PRNGKeyArray) -> nn.Stem:
    halvings = {16: 4, 8: 3, 4: 2}[config.patch_size]
    if config.network == "paper":
        widths = [config.dim[0] // 2**power for power in reversed(range(halvings))]
        return nn.Stem(config.in_channels, widths, activation=nn.ACTIVATIONS[config.activation], key=key)
    widths = [*(32, 64, 128)[-(halvings - 1) :], config.dim[0]]
    return nn.Stem(config.in_channels, widths, activation=nn.identity, use_norm=False, key=key)


def _stage(config: LeViTConfig, stage: int, key: PRNGKeyArray) -> nn.Stage:
    blocks = config.block_sizes(stage)
    keys = jax.random.split(key, len(blocks))
    return nn.Stage(
        [_block(config, sizes, block_key) for sizes, block_key in zip(blocks, keys, strict=True)], remat=config.remat
    )


def _block(config: LeViTConfig, sizes: BlockSizes, key: PRNGKeyArray) -> nn.Block:
    attention_key, mlp_key = jax.random.split(key)
    activation = nn.ACTIVATIONS[config.activation]
    dropout = config.dropout if sizes.stride == 1 else 0.0
    attention = partial(
        nn.Attention,
        sizes.dim,
        sizes.grid,
        heads=sizes.heads,
        key_dim=sizes.key_dim,
        value_dim=sizes.value_dim,
        out_dim=sizes.out_dim,
        stride=sizes.stride,
        dropout=dropout,
        key=attention_key,
    )
    mlp = partial(nn.MLP, sizes.out_dim, sizes.hidden_dim, activation=activation, dropout=dropout, key=mlp_key)
    drop_path = nn.DropPath(config.drop_path)
    if config.network == "paper":
        return nn.Block(attention(activation=activation), mlp(), drop_path)
    vit_pytorch_attention = attention(
        activation=nn.gelu,
        zero_init=True,
        output_bias=True,
        bias_scale=math.sqrt(sizes.key_dim),
        bias_std=1.0,
    )
    return nn.Block(vit_pytorch_attention, mlp(use_norm=False), drop_path)


def make_head(config: LeViTConfig, key: PRNGKeyArray) -> nn.NormLinear | nn.DistilledHead | None:
    if config.num_classes == 0:
        return None
    head = nn.DistilledHead if config.distillation else nn.NormLinear
    return head(config.dim[-1], config.num_classes, use_norm=config.network == "paper", key=key)
