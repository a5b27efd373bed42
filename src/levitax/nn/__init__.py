"""The layers of LeViT, each usable alone.

Those that map tokens share one convention: `x, state = layer(x, state, key=key)` for a single example, channels last,
the batch added outside by `jax.vmap` (see [`levitax.batched`][]).
"""

from ._activations import (
    Activation as Activation,
    ACTIVATIONS as ACTIVATIONS,
    gelu as gelu,
    hard_swish as hard_swish,
    identity as identity,
    relu as relu,
    silu as silu,
)
from ._attention import (
    Attention as Attention,
    QueryKeyValue as QueryKeyValue,
    SubsampledQueryKeyValue as SubsampledQueryKeyValue,
)
from ._attention_bias import AttentionBias as AttentionBias, GatheredAttentionBias as GatheredAttentionBias
from ._batch_norm import Affine as Affine, BatchNorm as BatchNorm, RunningStatistics as RunningStatistics
from ._drop_path import DropPath as DropPath
from ._head import DistilledHead as DistilledHead, DistilledLogits as DistilledLogits
from ._mlp import MLP as MLP
from ._norm_linear import ConvNorm as ConvNorm, LinearNorm as LinearNorm, NormLinear as NormLinear
from ._stage import Block as Block, Stage as Stage
from ._stem import Stem as Stem
