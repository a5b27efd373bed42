"""The tables of names, on small models; `tests/parity` compares them with the references."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.weights import load, state_dict
from tests.equality import tree_equal


# The names of one array of each kind in the published files of LeViT-128S.
NAMES = {
    "levitax": {
        "stem.convolutions.1.weight": (32, 16, 3, 3),
        "stages.0.blocks.1.attention.project_in.linear.weight": (256, 128),
        "stages.0.blocks.1.attention.bias.table": (4, 14, 14),
        "stages.1.blocks.0.attention.project_in.key_value.norm.mean": (640,),
        "stages.1.blocks.0.mlp.contract.weight": (256, 512),
        "stages.2.blocks.4.mlp.expand.norm.weight": (768,),
        "head.distillation.weight": (1000, 384),
    },
    "official": {
        "patch_embed.2.c.weight": (32, 16, 3, 3),
        "blocks.2.m.qkv.c.weight": (256, 128),
        "blocks.2.m.attention_biases": (4, 196),
        "blocks.2.m.attention_bias_idxs": (196, 196),
        "blocks.4.kv.bn.running_mean": (640,),
        "blocks.5.m.2.c.weight": (256, 512),
        "blocks.21.m.0.bn.weight": (768,),
        "head_dist.l.weight": (1000, 384),
    },
    "timm": {
        "stem.conv2.linear.weight": (32, 16, 3, 3),
        "stages.0.blocks.1.attn.qkv.linear.weight": (256, 128),
        "stages.0.blocks.1.attn.attention_biases": (4, 196),
        "stages.1.downsample.attn_downsample.kv.bn.running_mean": (640,),
        "stages.1.downsample.mlp.ln2.linear.weight": (256, 512),
        "stages.2.blocks.3.mlp.ln1.bn.weight": (768,),
        "head_dist.linear.weight": (1000, 384),
    },
    "timm_conv": {
        "stem.conv2.linear.weight": (32, 16, 3, 3),
        "stages.0.blocks.1.attn.qkv.linear.weight": (256, 128, 1, 1),
        "stages.1.downsample.mlp.ln2.linear.weight": (256, 512, 1, 1),
        "head_dist.linear.weight": (1000, 384),
    },
    "transformers": {
        "levit.patch_embeddings.embedding_layer_2.convolution.weight": (32, 16, 3, 3),
        "levit.encoder.stages.0.layers.2.module.queries_keys_values.linear.weight": (256, 128),
        "levit.encoder.stages.0.layers.2.module.attention_biases": (4, 196),
        "levit.encoder.stages.0.layers.4.keys_values.batch_norm.running_mean": (640,),
        "levit.encoder.stages.0.layers.5.module.linear_down.linear.weight": (256, 512),
        "levit.encoder.stages.2.layers.7.module.linear_up.batch_norm.weight": (768,),
        "classifier_distill.linear.weight": (1000, 384),
    },
    "mmpretrain": {
        "backbone.patch_embed.patch_embed.2.conv.weight": (32, 16, 3, 3),
        "backbone.stages.0.2.block.qkv.linear.weight": (256, 128),
        "backbone.stages.0.2.block.attention_biases": (4, 196),
        "backbone.stages.1.0.kv.bn.running_mean": (640,),
        "backbone.stages.1.1.block.linear2.linear.weight": (256, 512),
        "backbone.stages.2.9.block.linear1.bn.weight": (768,),
        "head.head_dist.linear.weight": (1000, 384),
    },
}
ENTRIES = {"levitax": 273, "official": 336, "timm": 325, "timm_conv": 325, "transformers": 325, "mmpretrain": 336}


@pytest.fixture(scope="module")
def published():
    return levitax.levit_128s(key=jax.random.key(0))


@pytest.mark.parametrize("layout", NAMES)
def test_names_are_those_of_published_files(published, layout):
    arrays = state_dict(*published, layout=layout)
    assert len(arrays) == ENTRIES[layout]
    assert {name: arrays[name].shape for name in NAMES[layout]} == NAMES[layout]


@pytest.fixture
def make(make):
    """Makes models of 3x3 tokens. They fit no rectangular images, so their tables give the image size."""
    return lambda **overrides: make(**{"image_size": 12, **overrides})


PAPER = ("levitax", "official", "timm", "timm_conv", "transformers", "mmpretrain")
MODELS = {
    "two heads": {},
    "one head": {"distillation": False},
    "no head": {"num_classes": 0, "distillation": False},
    "one stage": {"stages": 1, "dim": 16, "heads": 2, "depth": 2, "image_size": 4},
    "three stages": {"stages": 3, "dim": (16, 24, 32), "heads": (1, 2, 3), "depth": (1, 2, 3), "image_size": 24},
    "other sizes": {"value_dim": (8, 24), "mlp_mult": (3, 1), "subsample_heads": 3, "subsample_value_ratio": 1},
    "patches of 8": {"patch_size": 8, "image_size": 24},
    "patches of 16": {"patch_size": 16, "image_size": 48, "in_channels": 1},
}


def for_layout(layout, sizes):
    """Returns the sizes, with the only stem that some layouts support."""
    if layout in ("levitax", "timm", "timm_conv"):
        return sizes
    pixels = 16 // sizes.get("patch_size", 4) * np.array(sizes.get("image_size", 12))
    return {**sizes, "patch_size": 16, "image_size": pixels.tolist()}


@pytest.mark.parametrize(
    ("sizes", "layout"),
    [
        pytest.param(sizes, layout, id=f"{name}-{layout}", marks=[pytest.mark.slow] * (number % 6 != column))
        for number, (name, sizes) in enumerate(MODELS.items())
        for column, layout in enumerate(PAPER)
    ],
)
def test_sizes_are_inferred_from_the_shapes(make, randomise, layout, sizes):
    model, state = randomise(*make(**for_layout(layout, sizes)))
    arrays = state_dict(model, state, layout=layout)
    loaded = load(arrays)
    assert tree_equal(loaded, (model, state), typematch=True)
    assert loaded[0].config == model.config
    again = state_dict(*loaded, layout=layout)
    assert again.keys() == arrays.keys()
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())


def test_a_backbone_of_transformers_has_no_prefix(make, randomise):
    model, state = randomise(*make(num_classes=0, distillation=False, patch_size=16, image_size=48))
    arrays = state_dict(model, state, layout="transformers_backbone")
    assert "patch_embeddings.embedding_layer_1.convolution.weight" in arrays
    assert tree_equal(load(arrays), (model, state), typematch=True)


@pytest.mark.parametrize("distillation", (False, True), ids=("one head", "two heads"))
def test_the_vit_pytorch_network_has_its_own_layout(make, randomise, distillation):
    model, state = randomise(*make(network="vit_pytorch", distillation=distillation, patch_size=16, image_size=48))
    assert tree_equal(load(state_dict(model, state, layout="levitax")), (model, state), typematch=True)
    arrays = state_dict(model, state, layout="vit_pytorch")
    assert arrays["backbone.0.layers.0.0.to_q.0.weight"].shape == (8, 16, 1, 1)
    assert arrays["backbone.1.layers.0.0.pos_bias.weight"].shape == (9, 2)
    assert tree_equal(load(arrays), (model, state), typematch=True)


def test_the_channels_of_a_head_stay_together(make):
    # [query | key | value] of the first head, then of the second, from PyTorch's three linear layers.
    model, state = make(network="vit_pytorch", heads=(2, 2), key_dim=1, value_dim=2, patch_size=16, image_size=48)
    arrays = state_dict(model, state, layout="vit_pytorch")
    owner = "backbone.0.layers.0.0.to_"
    for letter, rows in (("q", [0, 10]), ("k", [1, 11]), ("v", [2, 3, 12, 13])):
        values = np.array(rows, np.float32)[:, None, None, None]
        arrays[f"{owner}{letter}.0.weight"] = np.broadcast_to(values, (len(rows), 16, 1, 1))
    loaded: Any
    loaded, _ = load(arrays)
    weight = loaded.stages[0].blocks[0].attention.project_in.linear.weight
    assert weight[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


RECTANGLE = {"image_size": (16, 24)}


@pytest.mark.parametrize("layout", PAPER)
def test_rectangles_need_the_image_size(make, randomise, layout):
    model, state = randomise(*make(**for_layout(layout, RECTANGLE)))
    arrays = state_dict(model, state, layout=layout)
    size = model.config.image_size
    assert tree_equal(load(arrays, image_size=size), (model, state), typematch=True)
    if layout != "levitax":
        with pytest.raises(ValueError, match=r"24 tokens: 2x12 or 4x6 or 6x4 or 12x2\. Pass the `image_size`"):
            load(arrays)


def test_the_bias_of_a_rectangle_belongs_to_its_offsets(make):
    model, state = make(**RECTANGLE)
    arrays = state_dict(model, state, layout="timm")
    table = np.arange(24, dtype=np.float32)[None]
    arrays["stages.0.blocks.0.attn.attention_biases"] = table
    loaded, _ = load(arrays, image_size=(16, 24))
    bias = loaded.stages[0].blocks[0].attention.bias()
    # One row down and two columns to the right, in a grid of six columns.
    assert bias[0, 0, 8] == bias[0, 8, 0] == 8


def test_the_state_dict_of_a_wrapped_model_is_found(make, randomise):
    model, state = randomise(*make())
    arrays = state_dict(model, state, layout="timm")
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": array for name, array in arrays.items()}}
    assert tree_equal(load(wrapped), (model, state), typematch=True)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ("levit_384", "levit_256d", "levit_384_s8"))
def test_published_variants_keep_what_shapes_do_not_show(variant):
    sizes = levitax.VARIANTS[variant]
    skeleton = eqx.filter_eval_shape(eqx.nn.make_with_state(levitax.LeViT), **sizes, key=jax.random.key(0))
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    model, state = jax.tree.map(zeros, skeleton)
    loaded, _ = load(state_dict(model, state, layout="timm"))
    assert loaded.config == levitax.LeViTConfig(**sizes)


@pytest.mark.parametrize("prefix", ("module.", "model.", "module._orig_mod."))
def test_prefixes_of_wrappers_are_removed(make, randomise, prefix):
    model, state = randomise(*make())
    arrays = {prefix + name: array for name, array in state_dict(model, state, layout="timm").items()}
    assert tree_equal(load(arrays), (model, state), typematch=True)
