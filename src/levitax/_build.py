"""The layers of a LeViT, of the sizes in its configuration."""

import math
from functools import partial

import jax
from jaxtyping import PRNGKeyArray

from . import nn
from ._config import BlockSizes, LeViTConfig


def make_stem(config: LeViTConfig, key: PRNGKeyArray) -> nn.Stem:
    """The widths double from one convolution to the next, up to `dim[0]`."""
    convolutions = {16: 4, 8: 3, 4: 2}[config.patch_size]
    if config.network == "paper":
        widths = [config.dim[0] // 2**power for power in reversed(range(convolutions))]
        return nn.Stem(config.in_channels, widths, activation=nn.ACTIVATIONS[config.activation], key=key)
    widths = [*(32, 64, 128)[-(convolutions - 1) :], config.dim[0]]
    return nn.Stem(config.in_channels, widths, activation=nn.identity, use_norm=False, key=key)


def make_stages(config: LeViTConfig, key: PRNGKeyArray) -> tuple[nn.Stage, ...]:
    stage_keys = jax.random.split(key, config.stages)
    return tuple(_make_stage(config, stage, stage_key) for stage, stage_key in enumerate(stage_keys))


def make_head(config: LeViTConfig, key: PRNGKeyArray) -> nn.NormLinear | nn.DistilledHead | None:
    if config.num_classes == 0:
        return None
    head = nn.DistilledHead if config.distillation else nn.NormLinear
    return head(config.dim[-1], config.num_classes, use_norm=config.network == "paper", key=key)


def _make_stage(config: LeViTConfig, stage: int, key: PRNGKeyArray) -> nn.Stage:
    blocks = config.block_sizes(stage)
    block_keys = jax.random.split(key, len(blocks))
    blocks = [_make_block(config, sizes, block_key) for sizes, block_key in zip(blocks, block_keys, strict=True)]
    return nn.Stage(blocks, remat=config.remat)


def _make_block(config: LeViTConfig, sizes: BlockSizes, key: PRNGKeyArray) -> nn.Block:
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
