"""The layers of a LeViT, of the sizes in its configuration."""

import math
from functools import partial
from typing import Any

from jaxtyping import PRNGKeyArray

from . import nn
from ._config import BlockSizes, LeViTConfig
from ._keys import split_key


def make_stem(config: LeViTConfig, key: PRNGKeyArray) -> nn.Stem:
    convolutions = {16: 4, 8: 3, 4: 2}[config.patch_size]
    if config.network == "vit_pytorch":
        widths = [*(32, 64, 128)[-(convolutions - 1) :], config.dim[0]]
        return nn.Stem(config.in_channels, widths, activation=nn.identity, use_norm=False, key=key)
    # Each convolution has twice the channels of the one before: 32, 64, 128 and 256 in LeViT-256.
    widths = [config.dim[0] // 2**power for power in reversed(range(convolutions))]
    return nn.Stem(config.in_channels, widths, activation=_activation(config), norm=_norm(config), key=key)


def make_stages(config: LeViTConfig, key: PRNGKeyArray) -> tuple[nn.Stage, ...]:
    stage_keys = split_key(key, config.stages)
    return tuple(_make_stage(config, stage, stage_key) for stage, stage_key in enumerate(stage_keys))


def make_head(config: LeViTConfig, key: PRNGKeyArray) -> nn.NormLinear | nn.DistilledHead | None:
    if config.num_classes == 0:
        return None
    head = nn.DistilledHead if config.distillation else nn.NormLinear
    return head(
        config.dim[-1],
        config.num_classes,
        use_norm=config.network == "paper",
        norm=_norm(config),
        dropout=config.head_dropout,
        key=key,
    )


def _make_stage(config: LeViTConfig, stage: int, key: PRNGKeyArray) -> nn.Stage:
    sizes = config.block_sizes(stage)
    block_keys = split_key(key, len(sizes))
    blocks = [_make_block(config, each, block_key) for each, block_key in zip(sizes, block_keys, strict=True)]
    return nn.Stage(blocks, remat=config.remat)


def _make_block(config: LeViTConfig, sizes: BlockSizes, key: PRNGKeyArray) -> nn.Block:
    attention_key, mlp_key = split_key(key, 2)
    norm, activation, attention_bias = _norm(config), _activation(config), nn.AttentionBias
    dropout = config.dropout if sizes.stride == 1 else 0.0
    of_attention: dict[str, Any] = {"activation": activation}
    of_mlp: dict[str, Any] = {}
    if config.network == "vit_pytorch":
        of_attention = {
            "activation": nn.gelu,
            "zero_init": True,
            "output_bias": True,
        }
        of_mlp = {"use_norm": False}
        attention_bias = partial(nn.AttentionBias, scale=math.sqrt(sizes.key_dim), std=1.0)
    attention = nn.Attention(
        sizes.dim,
        sizes.grid,
        heads=sizes.heads,
        key_dim=sizes.key_dim,
        value_dim=sizes.value_dim,
        out_dim=sizes.out_dim,
        stride=sizes.stride,
        dropout=dropout,
        norm=norm,
        attention_bias=config.attention_bias or attention_bias,
        key=attention_key,
        **of_attention,
    )
    mlp = nn.MLP(
        sizes.out_dim, sizes.hidden_dim, activation=activation, dropout=dropout, norm=norm, key=mlp_key, **of_mlp
    )
    return nn.Block(attention, mlp, nn.DropPath(config.drop_path))


def _norm(config: LeViTConfig) -> nn.NormFactory:
    return config.norm or nn.BatchNorm


def _activation(config: LeViTConfig) -> nn.Activation:
    return nn.ACTIVATIONS[config.activation] if isinstance(config.activation, str) else config.activation
