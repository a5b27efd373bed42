import math
import re
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax import nn
from levitax._multiply_adds import multiply_adds
from levitax._outline import outline


# The "FLOPs" that the authors' code counts: multiply-adds, and one for each entry of a softmax.
PUBLISHED = {
    "levit_128s": 305_108_946,
    "levit_128": 406_114_880,
    "levit_192": 657_601_916,
    "levit_256": 1_128_024_056,
    "levit_384": 2_352_935_380,
}


def shapes(make, *args, **keywords):
    """Returns the shapes and dtypes of the result of `make`, without computing it."""
    return eqx.filter_eval_shape(make, *args, **keywords, key=jax.random.key(0))


class LowRank(eqx.Module):
    """A linear layer and a product of two narrow matrices, added to it."""

    layer: nn.LinearNorm
    down: jax.Array
    up: jax.Array

    def __call__(self, x, state, *, key=None):
        y, state = self.layer(x, state, key=key)
        return y + x @ self.down @ self.up, state


class Counter(eqx.Module):
    """Counts its calls in the state."""

    calls: eqx.nn.StateIndex

    def __init__(self):
        self.calls = eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, state, *, key=None):
        return x, state.set(self.calls, state.get(self.calls) + 1)


def with_counter(model):
    return eqx.tree_at(lambda model: model.stages[0].blocks[0].mlp.expand.norm, model, Counter())


def two_groups(channels, *, key):
    return eqx.nn.GroupNorm(2, channels)


def same(x, state, *, key=None):
    return x, state


@pytest.mark.parametrize("name", levitax.VARIANTS)
def test_multiply_adds_are_as_published(name):
    model, _ = shapes(levitax.create_model, name)
    counted = levitax.summary(model).total.multiply_adds
    in_docstring = re.search(r"([\d.]+) GMAC", getattr(levitax, name).__doc__)
    assert in_docstring is not None
    assert in_docstring[1] == f"{counted / 1e9:.{len(in_docstring[1].partition('.')[2])}f}"
    if name in PUBLISHED:
        of_softmax = [
            block.heads * math.prod(-(-size // block.stride) for size in block.grid) * math.prod(block.grid)
            for stage in range(model.config.stages)
            for block in model.config.block_sizes(stage)
        ]
        assert counted + sum(of_softmax) == PUBLISHED[name]


def test_rows_are_data(make):
    model, state = make()
    summary = levitax.summary(model)
    assert [row.name for row in summary.rows] == ["stem", "stage 1", "stage 2", "head"]
    maps, state = model_maps(model, state)
    assert [row.output_shape for row in summary.rows[1:3]] == [map.shape for map in maps]
    assert summary.rows[0].output_shape == maps[0].shape
    assert summary.rows[-1].output_shape == summary.total.output_shape == (5,)
    assert summary.total.parameters == levitax.count_parameters(model) == sum(row.parameters for row in summary.rows)
    assert summary.total.multiply_adds == sum(row.multiply_adds for row in summary.rows)
    # Two classifiers of 24 channels.
    assert summary.rows[-1].multiply_adds == 2 * 24 * 5
    # The first convolution of the stem has 8 channels, the second 16.
    assert summary.rows[0].multiply_adds == 8 * 8 * 9 * 3 * 8 + 4 * 4 * 9 * 8 * 16


def model_maps(model, state):
    return eqx.nn.inference_mode(model).features(jnp.zeros((16, 16, 3)), state)


def test_the_table_has_a_line_for_each_part(make):
    model, _ = make()
    lines = str(levitax.summary(model)).splitlines()
    assert lines[0] == "LeViT: 16x16x3 images, 5 classes, float32, training mode, not fused"
    assert lines[1].split() == ["part", "layers", "output", "parameters", "multiply-adds"]
    assert lines[2].split()[:4] == ["stem", "Stem:", "2", "convolutions"]
    assert "Stage: 2 blocks, 2 heads, key_dim 8  (2, 2, 24)" in lines[4]
    assert lines[-2].split()[:2] == ["head", "DistilledHead"] and lines[-2].endswith("  240 MAC")
    assert lines[-1].split()[0] == "total" and lines[-1].endswith(" kMAC")
    predict = levitax.fuse(*make(dtype="bfloat16", distillation=False, image_size=(16, 24)))
    assert repr(levitax.summary(predict.model)).startswith(
        "LeViT: 16x24x3 images, 5 classes, bfloat16, inference mode, fused\n"
    )


@pytest.mark.parametrize(
    "overrides",
    (
        {"num_classes": 0},
        {"distillation": False},
        {"pooling": "none"},
        {"remat": True},
        {"dtype": "bfloat16", "dim": (128, 24)},
        {"network": "vit_pytorch"},
        {"norm": two_groups},
    ),
)
def test_fused_models_have_the_multiply_adds_of_the_whole(make, overrides):
    model, state = make(**overrides)
    predict = levitax.fuse(model, state)
    whole, fused = levitax.summary(model), levitax.summary(predict.model)
    are_merged = whole.rows[-1].layers == "DistilledHead" and fused.rows[-1].layers == "NormLinear"
    assert fused.rows[-1].multiply_adds == whole.rows[-1].multiply_adds // (2 if are_merged else 1)
    assert [row.multiply_adds for row in fused.rows[:-1]] == [row.multiply_adds for row in whole.rows[:-1]]
    assert fused.total.output_shape == jax.eval_shape(predict, jnp.zeros((16, 16, 3))).shape
    assert fused.total.parameters == levitax.count_parameters(predict.model)


def test_models_of_shapes_and_models_with_their_state_inside_are_as_others(small, key, make):
    expected = levitax.summary(make()[0])
    assert levitax.summary(shapes(levitax.LeViT, **small)) == expected
    assert levitax.summary(shapes(eqx.nn.make_with_state(levitax.LeViT), **small)[0]) == expected
    assert levitax.summary(levitax.LeViT(**small, key=key)) == expected


def test_layers_of_other_classes_are_counted(make, unchecked):
    model, _ = make()
    plain = levitax.summary(model)
    where: Any = lambda model: model.stages[1].blocks[1].mlp.expand
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
    low_rank = eqx.tree_at(where, model, LowRank(where(model), zeros(24, 3), zeros(3, 48)))
    more = levitax.summary(low_rank)
    assert more.total.multiply_adds - plain.total.multiply_adds == 4 * (24 * 3 + 3 * 48)
    assert more.total.parameters - plain.total.parameters == 24 * 3 + 3 * 48
    fewer = levitax.summary(eqx.tree_at(lambda model: model.stages[0].blocks[0], model, same))
    assert fewer.rows[1][1:4] == ((4, 4, 16), 0, 0) and fewer.rows[1].layers == "Stage: 1 block (among them same)"
    whole_stage = levitax.summary(eqx.tree_at(lambda model: model.stages[0], model, same))
    assert whole_stage.rows[1][1:4] == ((4, 4, 16), 0, 0) and whole_stage.rows[1].layers == "same"
    head = lambda pooled, state, *, key=None: ({"first": pooled, "second": pooled[:3]}, state)
    assert levitax.summary(eqx.tree_at(lambda model: model.head, model, head)).total.output_shape == {
        "first": (24,),
        "second": (3,),
    }


def test_a_layer_with_a_state_of_its_own_needs_the_state(small, key):
    make: Any = lambda: with_counter(levitax.LeViT(**small, key=key))
    model, state = eqx.nn.make_with_state(make)()
    with pytest.raises(ValueError, match=r"`model\.stages\.0\.blocks\.0\.mlp\.expand\.norm\.calls` keeps a state"):
        levitax.summary(model)
    assert levitax.summary(model, state) == levitax.summary(make())
    # The state is still valid.
    levitax.summary(model, state)


def test_nothing_but_a_levit_is_summarised(make, unchecked):
    predict = levitax.fuse(*make())
    with pytest.raises(TypeError, match=r"`Predictor`; expected a `levitax.LeViT`\. .* pass the LeViT inside"):
        levitax.summary(predict)  # type: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`state` is of type `int`"):
        levitax.summary(predict.model, 3)  # type: ignore[reportArgumentType]


def test_products_are_counted_in_every_kind_of_call():
    weight = jnp.zeros((3, 5))

    @jax.custom_jvp
    def with_derivative(x):
        return x @ weight

    @jax.custom_vjp
    def with_backward(x):
        return x @ weight

    with_derivative.defjvp(lambda primals, tangents: (with_derivative(*primals), with_derivative(*tangents)))
    with_backward.defvjp(lambda x: (with_backward(x), None), lambda residual, g: (g @ weight.T,))
    product = lambda x: x @ weight
    x = jnp.zeros((2, 3))
    one = 2 * 3 * 5
    batched_product = lambda x: jnp.einsum("bij,bjk->bik", x, jnp.zeros((4, 3, 5)))
    cases = [
        (product, x, one),
        (jax.jit(product), x, one),
        (jax.checkpoint(product), x, one),
        (with_derivative, x, one),
        (with_backward, x, one),
        (jax.vmap(product), jnp.zeros((7, 2, 3)), 7 * one),
        (batched_product, jnp.zeros((4, 2, 3)), 4 * one),
        (lambda x: jax.lax.scan(lambda carry, y: (carry, product(y)), 0, x), jnp.zeros((7, 2, 3)), 7 * one),
        (lambda x: jax.lax.cond(x.sum() > 0, product, lambda x: product(product(x)[:, :3]), x), x, 2 * one),
        (lambda x: jax.lax.platform_dependent(x, cpu=product, default=product), x, one),
    ]
    for function, argument, expected in cases:
        assert multiply_adds(jax.make_jaxpr(function)(argument).jaxpr, {}) == expected


def test_convolutions_are_counted_by_groups():
    def convolve(x, groups):
        weight = jnp.zeros((6, 4 // groups, 3, 3))
        numbers = ("NHWC", "OIHW", "NHWC")
        return jax.lax.conv_general_dilated(
            x, weight, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    for groups in (1, 2):
        traced = jax.make_jaxpr(lambda x, groups=groups: convolve(x, groups))(jnp.zeros((1, 8, 8, 4)))
        assert multiply_adds(traced.jaxpr, {}) == 4 * 4 * 6 * 9 * 4 // groups


def test_a_long_table_is_shortened(make):
    model, _ = make()
    deep = eqx.tree_at(lambda model: model.stages, model, model.stages * 30)
    lines = outline(deep).splitlines()
    assert len(lines) == 40 and lines[-1].startswith("total") and "(26 more)" in lines[21]


def test_an_outline_names_the_parts_and_traces_nothing(make):
    model, _ = make()
    head = eqx.tree_at(
        lambda model: (model.head, model.stages[0].blocks[0]), model, (same, LowRank(*cast(Any, (None, 0, 0))))
    )
    lines = outline(head).splitlines()
    assert lines[0] == "LeViT: 16x16x3 images, 5 classes, float32, training mode, not fused"
    assert lines[1].split() == ["part", "layers", "output", "parameters"]
    assert "Stage: 1 block (among them LowRank)  (4, 4, 16)" in lines[3]
    assert lines[-2].split() == ["head", "same", "(5,)", "0"]
    assert lines[-1].split() == ["total", f"{levitax.count_parameters(head):,}"]
    frozen = eqx.tree_at(lambda model: model.head, model, eqx.nn.inference_mode(model.head))
    assert "partly in inference mode" in outline(frozen)
    assert "no classes" in outline(make(num_classes=0)[0]) and "none" in outline(make(num_classes=0)[0])
    assert "(4, 5)" in outline(make(pooling="none")[0])


def test_a_model_prints_its_outline_and_its_tree_in_full(make):
    model, _ = make()
    assert repr(model) == outline(model) and "stage 1  Stage: 1 block, 1 head, key_dim 8 " in repr(model)
    assert len(eqx.tree_pformat(model).splitlines()) > 300


def test_an_outline_never_fails(make):
    model, state = make()
    predict = levitax.fuse(model, state)
    for leaf in (None, True, 1.0, "name", np.zeros(3), object()):
        assert outline(jax.tree.map(lambda _, leaf=leaf: leaf, model)).startswith("LeViT: 16x16x3 images")
        outline(jax.tree.map(lambda _, leaf=leaf: leaf, predict.model))
    stacked = jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, predict.model)
    parts = eqx.tree_at(lambda model: model.stages, model, None, is_leaf=lambda node: node is None)
    for tree in (stacked, parts):
        assert outline(tree) == eqx.tree_pformat(tree)
    seen = []
    eqx.filter_jit(lambda model: seen.append(outline(model)))(model)
    assert seen == [outline(model)]
