"""The layers of LeViT, each usable on its own.

Call a layer as `x, state = layer(x, state, key=key)`, on a single example with channels last. `state` holds the running
statistics of the batch normalisations. Layers that draw random numbers need a `key` in training. `jax.vmap` adds the
batch (see [`levitax.batched`][]). Activations and drop path take no `state`, and an attention bias takes no arguments.
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
    BiasFactory as BiasFactory,
    QueryKeyValue as QueryKeyValue,
    SubsampledQueryKeyValue as SubsampledQueryKeyValue,
)
from ._attention_bias import AttentionBias as AttentionBias, GatheredAttentionBias as GatheredAttentionBias
from ._batch_norm import Affine as Affine, BatchNorm as BatchNorm, RunningStatistics as RunningStatistics
from ._head import (
    DistilledHead as DistilledHead,
    DistilledLogits as DistilledLogits,
    Logits as Logits,
    NormLinear as NormLinear,
)
from ._linear import ConvNorm as ConvNorm, LinearNorm as LinearNorm
from ._mlp import MLP as MLP
from ._norm import (
    ChannelsFirst as ChannelsFirst,
    Layer as Layer,
    NormFactory as NormFactory,
    PerToken as PerToken,
)
from ._stage import Block as Block, DropPath as DropPath, Stage as Stage
from ._stem import Stem as Stem
