import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import pytest

import levitax
from levitax import LeViTConfig


SETTINGS: dict[str, dict[str, Any]] = {
    **{name: dict(fields) for name, fields in levitax.VARIANTS.items()},
    "vit_pytorch": {"network": "vit_pytorch", "dropout": 0.1},
    "odd": {
        "image_size": (225, 190),
        "dtype": jnp.bfloat16,
        "remat": True,
        "value_dim": (24, 40, 72),
        "num_classes": 0,
    },
}


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
def test_json_and_back_gives_the_same(fields):
    config = LeViTConfig(**fields)
    assert LeViTConfig.from_dict(config.to_dict()) == config
    assert LeViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_differs_from_others():
    assert len({LeViTConfig(**fields) for fields in SETTINGS.values()}) == len(SETTINGS)


def test_a_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LeViTConfig().dropout = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"image_size": 64}, {"image_size": (64, 64)}),
        ({"dim": 64, "heads": 2}, {"dim": (64, 64, 64), "heads": (2, 2, 2)}),
        ({"depth": 2, "mlp_mult": 3}, {"depth": [2, 2, 2], "mlp_mult": [3, 3, 3]}),
        ({"key_dim": 16}, {"key_dim": (16, 16, 16), "value_dim": 32, "subsample_heads": (16, 24)}),
        ({}, {"subsample_value_ratio": (4, 4), "subsample_mlp_mult": (2, 2), "distillation": True}),
        (
            {"network": "vit_pytorch"},
            {"network": "vit_pytorch", "subsample_heads": (8, 12), "subsample_value_ratio": 2, "distillation": False},
        ),
        ({"dtype": jnp.bfloat16}, {"dtype": "bfloat16"}),
    ],
)
def test_short_and_long_spellings_are_equal(short, long):
    assert LeViTConfig(**short) == LeViTConfig(**long)
    assert hash(LeViTConfig(**short)) == hash(LeViTConfig(**long))


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="embed_dim"):
        LeViTConfig.from_dict({**LeViTConfig().to_dict(), "embed_dim": 64})


@pytest.mark.parametrize(
    ("image_size", "patch_size", "grids"),
    [
        (224, 16, [(14, 14), (7, 7), (4, 4)]),
        (200, 16, [(13, 13), (7, 7), (4, 4)]),
        ((225, 190), 16, [(15, 12), (8, 6), (4, 3)]),
        ((448, 800), 16, [(28, 50), (14, 25), (7, 13)]),
        (224, 8, [(28, 28), (14, 14), (7, 7)]),
        (32, 4, [(8, 8), (4, 4), (2, 2)]),
        ((17, 16), 4, [(5, 4), (3, 2), (2, 1)]),
    ],
)
def test_grids_follow_from_the_convolutions(image_size, patch_size, grids):
    config = LeViTConfig(image_size=image_size, patch_size=patch_size)
    assert [config.grid(stage) for stage in range(config.stages)] == grids


# For each of three stages: the channels of queries, keys and values together, and those of all heads' values. For each
# downsampling attention: those of keys and values, of queries, of the heads' values, and of the output.
WIDTHS = {
    "levit_128s": ([256, 384, 512], [128, 192, 256], [(640, 128, 512, 256), (1280, 256, 1024, 384)]),
    "levit_128": ([256, 512, 768], [128, 256, 384], [(640, 128, 512, 256), (1280, 256, 1024, 384)]),
    "levit_192": ([384, 640, 768], [192, 320, 384], [(960, 192, 768, 288), (1440, 288, 1152, 384)]),
    "levit_256": ([512, 768, 1024], [256, 384, 512], [(1280, 256, 1024, 384), (1920, 384, 1536, 512)]),
    "levit_384": ([768, 1152, 1536], [384, 576, 768], [(1920, 384, 1536, 512), (2560, 512, 2048, 768)]),
    "levit_512": ([2048, 3072, 4096], [1024, 1536, 2048], [(2560, 512, 2048, 768), (3840, 768, 3072, 1024)]),
    "levit_512d": ([2048, 2560, 3072], [1024, 1280, 1536], [(2560, 512, 2048, 640), (3200, 640, 2560, 768)]),
    "levit_512_s8": ([2048, 2560, 3584], [1024, 1280, 1792], [(2560, 512, 2048, 640), (3200, 640, 2560, 896)]),
}


@pytest.mark.parametrize(("name", "widths"), WIDTHS.items(), ids=WIDTHS)
def test_blocks_have_the_published_widths(name, widths):
    config = LeViTConfig(**levitax.VARIANTS[name])
    blocks = [config.block_sizes(stage) for stage in range(3)]
    last = [stage[-1] for stage in blocks]
    shrinking = [stage[0] for stage in blocks[1:]]
    assert [block.heads * (2 * block.key_dim + block.value_dim) for block in last] == widths[0]
    assert [block.heads * block.value_dim for block in last] == widths[1]
    assert [
        (
            block.heads * (block.key_dim + block.value_dim),
            block.heads * block.key_dim,
            block.heads * block.value_dim,
            block.out_dim,
        )
        for block in shrinking
    ] == widths[2]
    assert all(block.hidden_dim == 2 * block.out_dim for stage in blocks for block in stage)


def test_only_the_first_block_of_a_later_stage_shrinks_and_stands_on_the_grid_before():
    config = LeViTConfig(**levitax.VARIANTS["levit_128s"])
    blocks = [config.block_sizes(stage) for stage in range(3)]
    assert [[block.stride for block in stage] for stage in blocks] == [[1] * 2, [2] + [1] * 3, [2] + [1] * 4]
    assert [[block.grid[0] for block in stage] for stage in blocks] == [[14] * 2, [14] + [7] * 3, [7] + [4] * 4]
