import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax.train import (
    adamw,
    adaptive_grad_clip,
    decay_mask,
    freeze_norms,
    head_only,
    RECIPES,
    trainable,
    warmup_cosine,
)
from tests.equality import tree_equal


MAPS = levitax.nn.ConvNorm, levitax.nn.LinearNorm, levitax.nn.NormLinear
networks = pytest.mark.parametrize("network", ("paper", "vit_pytorch"))


def kernels(tree):
    """Returns the kernels of the stem, the linear layers and the heads."""
    is_map = lambda node: isinstance(node, MAPS)
    return [node.weight for node in jax.tree.leaves(tree, is_leaf=is_map) if is_map(node)]


def test_attention_biases_of_other_classes_do_not_decay(make):
    class Bias(eqx.Module):
        kernel: jax.Array

        def __init__(self, heads, grid, *, stride, key):
            rows, columns = grid
            self.kernel = jnp.zeros((heads, -(-rows // stride) * -(-columns // stride), rows * columns), jnp.float32)

        def __call__(self):
            return self.kernel

    model, _ = make(attention_bias=Bias)
    biases = jax.tree.leaves([block.attention.bias for stage in model.stages for block in stage.blocks])
    mask = decay_mask(trainable(model))
    kept = [block.attention.bias.kernel for stage in mask.stages for block in stage.blocks]
    assert len(biases) == 3 and kept == [False] * 3 and len(kernels(model)) == sum(jax.tree.leaves(mask))


@networks
def test_kernels_decay_and_nothing_else_does(network, make):
    model, _ = make(network=network)
    params = trainable(model)
    expected = eqx.tree_at(kernels, jax.tree.map(lambda _: False, params), replace_fn=lambda _: True)
    assert tree_equal(decay_mask(params), expected)


@networks
@pytest.mark.parametrize(("keywords", "decay"), [({}, 0.025), ({"weight_decay": 0.5}, 0.5)], ids=("default", "given"))
def test_without_gradients_only_kernels_shrink(network, keywords, decay, make):
    model, _ = make(network=network)
    ones = jax.tree.map(jnp.ones_like, trainable(model))
    optimizer = adamw(0.1, **keywords)
    update = jax.jit(lambda ones: optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones))
    updates, _ = update(ones)
    expected = eqx.tree_at(kernels, ones, replace_fn=lambda kernel: (1 - 0.1 * decay) * kernel)
    assert tree_equal(eqx.apply_updates(ones, updates), expected, rtol=1e-6, atol=0)


def test_floating_point_arrays_are_trainable(make):
    model, _ = make()
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable(model))) == levitax.count_parameters(model)
    tree = {"weight": jnp.ones(2), "index": jnp.arange(2), "activation": jax.nn.relu, "rate": 0.1}
    assert tree_equal(trainable(tree), {"weight": tree["weight"], "index": None, "activation": None, "rate": None})


CLIPPING = 0.01


def norms_of_units(array):
    """Returns the norm of each unit, broadcast over its elements, in float64."""
    rows = np.asarray(array, np.float64).reshape(len(array) if array.ndim > 1 else 1, -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.broadcast_to(norms, rows.shape).reshape(array.shape)


def clipped(gradient, weight):
    """Returns the gradient, clipped by the definition."""
    largest = CLIPPING * np.maximum(norms_of_units(weight), 1e-3)
    norms = norms_of_units(gradient)
    gradient = np.asarray(gradient, np.float64)
    return np.where(norms > largest, gradient * largest / np.maximum(norms, 1e-6), gradient)


def clip_once(gradient, params, **keywords) -> Any:
    clip = adaptive_grad_clip(CLIPPING, **keywords)
    return clip.update(gradient, clip.init(params), params)[0]


@pytest.fixture
def params(make, randomise):
    model, _ = randomise(*make())
    return trainable(model)


@pytest.fixture
def gradient(params):
    """Gradients whose size differs between units, so that some are clipped and some are not."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        scale = 10.0 ** rng.uniform(-4, 0, (leaf.shape[0], *[1] * (leaf.ndim - 1)) if leaf.ndim > 1 else ())
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32)

    return jax.tree.map(draw, params)


def test_clipping_is_its_definition(params, gradient):
    ours = jax.jit(clip_once)(gradient, params)
    leaves = list(zip(*map(jax.tree.leaves, (ours, gradient, params)), strict=True))
    # Vectors, linear layers and tables, and convolution kernels.
    assert {leaf.ndim for leaf, _, _ in leaves} >= {1, 2, 4}
    for leaf, before, weight in leaves:
        np.testing.assert_allclose(leaf, clipped(before, weight), rtol=1e-5, atol=1e-12)
    changed = np.concatenate([np.ravel(leaf != before) for leaf, before, _ in leaves])
    assert 0.1 < changed.mean() < 0.9


def test_a_table_of_attention_biases_is_clipped_head_by_head(key):
    table = levitax.nn.AttentionBias(2, (3, 3), key=key)
    table = eqx.tree_at(lambda bias: bias.table, table, jnp.ones_like(table.table))
    large_in_one_head = jax.tree.map(lambda leaf: jnp.zeros_like(leaf).at[0].set(1.0), trainable(table))
    ours = clip_once(large_in_one_head, trainable(table))
    np.testing.assert_allclose(ours.table[0], CLIPPING, rtol=1e-6)
    np.testing.assert_array_equal(ours.table[1], 0)


def test_weights_of_zero_can_change():
    zeros, gradient = (
        {"vector": jnp.zeros(4), "kernel": jnp.zeros((2, 3))},
        {"vector": jnp.ones(4), "kernel": jnp.ones((2, 3))},
    )
    for keywords, eps in (({}, 1e-3), ({"eps": 0.5}, 0.5)):
        ours = clip_once(gradient, zeros, **keywords)
        np.testing.assert_allclose(jnp.linalg.norm(ours["vector"]), CLIPPING * eps, rtol=1e-5)
        np.testing.assert_allclose(jnp.linalg.norm(ours["kernel"], axis=1), CLIPPING * eps, rtol=1e-5)


def test_adamw_clips_if_clipping_is_given():
    params, gradient = ({"kernel": 2 * jnp.ones((2, 3)), "vector": jnp.ones(4)} for _ in range(2))
    small = clip_once(gradient, params)
    # A large eps: with a small one, the first step of Adam does not depend on the size of a gradient.
    update = lambda gradient, **keywords: adamw_once(gradient, params, eps=0.1, **keywords)
    assert tree_equal(update(gradient, clipping=CLIPPING), update(small), rtol=1e-5, atol=1e-8)
    assert not tree_equal(update(gradient), update(small), rtol=1e-2, atol=1e-4)


def adamw_once(gradient, params, **keywords):
    optimizer = adamw(0.1, **keywords)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


EPOCHS, STEPS, WARMUP = 10, 4, 3


def learning_rate(epoch):
    """Returns timm's cosine schedule, in float64."""
    if epoch < WARMUP:
        return 1e-6 + epoch * (0.5 - 1e-6) / WARMUP
    return 1e-5 + 0.5 * (0.5 - 1e-5) * (1 + np.cos(np.pi * min(epoch / EPOCHS, 1)))


# Flags of the schedule, and the epoch that it uses for a step.
EPOCH_OF: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "by step": ({}, lambda step: step / STEPS),
    "by epoch": ({"by_epoch": True}, lambda step: step // STEPS),
    "late": ({"by_epoch": True, "late": True}, lambda step: max(step // STEPS - 1, 0)),
}


@pytest.mark.parametrize("kind", EPOCH_OF)
def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine(kind):
    flags, epoch_of = EPOCH_OF[kind]
    schedule = warmup_cosine(0.5, epochs=EPOCHS, steps_per_epoch=STEPS, warmup_epochs=WARMUP, **flags)
    # Includes steps after the end.
    steps = range(EPOCHS * STEPS + 9)
    ours = jax.jit(jax.vmap(schedule))(jnp.arange(len(steps)))
    # Near the end, the cosine is a difference of two numbers near 1, hence `atol`.
    np.testing.assert_allclose(ours, [learning_rate(epoch_of(step)) for step in steps], rtol=1e-5, atol=3e-8)
    assert schedule(STEPS + 1) == pytest.approx(learning_rate(epoch_of(STEPS + 1)), rel=1e-5)


def test_the_official_training_starts_with_two_epochs_at_the_warm_up_rate():
    schedule = warmup_cosine(2e-3, epochs=1000, steps_per_epoch=625, by_epoch=True, late=True)
    rates = np.asarray(schedule(jnp.array([0, 624, 625, 1249, 1250, 1874])))
    np.testing.assert_allclose(rates[:4], 1e-6, rtol=1e-6)
    np.testing.assert_allclose(rates[4:], 1e-6 + (2e-3 - 1e-6) / 5, rtol=1e-6)


@pytest.mark.parametrize("flags", ({}, {"by_epoch": True}), ids=("by step", "by epoch"))
def test_without_a_warm_up_the_cosine_starts_at_once(flags):
    schedule = warmup_cosine(0.5, epochs=4, steps_per_epoch=5, warmup_epochs=0, min_learning_rate=0.1, **flags)
    np.testing.assert_allclose(schedule(jnp.array([0, 10, 20, 1000])), [0.5, 0.3, 0.1, 0.1], rtol=1e-6)


LENGTHS = {"epochs": 10, "steps_per_epoch": 4}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` is 0; expected an integer of at least 1"),
        ({"steps_per_epoch": 0}, ValueError, "`steps_per_epoch` is 0; expected an integer of at least 1"),
        ({"steps_per_epoch": 2.5}, TypeError, r"`steps_per_epoch` is 2\.5; expected an integer of at least 1"),
        ({"warmup_epochs": -1}, ValueError, "`warmup_epochs` is -1; expected an integer of at least 0"),
        ({"warmup_epochs": 10}, ValueError, "`warmup_epochs` is 10 of 10 `epochs`: the warm-up would take the whole"),
        ({"learning_rate": math.nan}, ValueError, "`learning_rate` is nan; expected a number from 0 to inf"),
        ({"learning_rate": -1e-3}, ValueError, r"`learning_rate` is -0\.001; expected a number from 0"),
        ({"min_learning_rate": math.inf}, ValueError, "`min_learning_rate` is inf"),
        ({"warmup_learning_rate": "1e-6"}, ValueError, "`warmup_learning_rate` is '1e-6'"),
        ({"late": True}, ValueError, "`late` is True and `by_epoch` False"),
        ({"by_epoch": 1}, TypeError, "`by_epoch` is 1; expected True or False"),
    ],
    ids=str,
)
def test_schedules_of_nothing_are_refused(keywords, kind, message):
    with pytest.raises(kind, match=message):
        warmup_cosine(**{"learning_rate": 0.5, **LENGTHS, **keywords})


def test_a_learning_rate_does_not_rise_at_the_end():
    message = "`min_learning_rate` is 1e-05 and `learning_rate` 7.8125e-06: the cosine would rise"
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["finetune"], batch_size=8, learning_rate=5e-4).schedule(8)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ("learning_rate", "weight_decay", "eps", "clipping"))
@pytest.mark.parametrize("value", (-0.1, math.nan, math.inf, "0.1", True))
def test_numbers_of_the_optimiser_are_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is .*; expected a number from"):
        adamw(**{"learning_rate": 0.1, name: value})


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"clipping": 0.0}, "clipping"),
        ({"clipping": -0.1}, "clipping"),
        ({"eps": -1.0}, "eps"),
        ({"eps": math.nan}, "eps"),
    ],
    ids=str,
)
def test_numbers_of_clipping_leave_something(keywords, name):
    with pytest.raises(ValueError, match=f"`{name}` is .*; expected a number from"):
        adaptive_grad_clip(**keywords)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_the_optimiser_may_be_traced():
    # `inject_hyperparams` recreates the optimiser in each step.
    optimizer = optax.inject_hyperparams(adamw)(learning_rate=0.1, weight_decay=0.5, clipping=0.01)
    params, gradient = {"kernel": jnp.ones((2, 3))}, {"kernel": jnp.full((2, 3), 2.0)}
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    plain = adamw(0.1, weight_decay=0.5, clipping=0.01)
    expected, _ = plain.update(gradient, plain.init(params), params)
    assert tree_equal(updates, expected, rtol=1e-6, atol=0)


def test_frozen_normalisations_keep_their_statistics_and_learn(make, randomise, images, key):
    model, state = randomise(*make(image_size=8, stages=1, dim=16, heads=1, dropout=0.5))
    # Each image alone: running statistics need no batch.
    frozen, x = freeze_norms(model), images(8, 8, 3)

    @eqx.filter_jit
    def train(model, key):
        def loss(model):
            outputs, new = model(x, state, key=key)
            return (outputs.classification**2 + outputs.distillation**2).sum(), new

        return eqx.filter_value_and_grad(loss, has_aux=True)(model)

    (loss, new), gradient = train(frozen, key)
    assert tree_equal(new, state)
    # Dropout is on.
    assert abs(train(frozen, jax.random.key(1))[0][0] - loss) > 1e-3
    norms = norms_in(gradient)
    assert len(norms) == len(norms_in(model)) > 5
    assert all(jnp.abs(norm.weight).max() > 0 and jnp.abs(norm.bias).max() > 0 for norm in norms)


def test_nothing_but_normalisations_is_frozen(make):
    model, _ = make(image_size=8, stages=1, dim=16, heads=1, dropout=0.5)
    frozen = freeze_norms(model)
    thawed = eqx.tree_at(lambda model: [norm.inference for norm in norms_in(model)], frozen, replace_fn=lambda _: False)
    assert all(norm.inference for norm in norms_in(frozen)) and not any(norm.inference for norm in norms_in(model))
    assert tree_equal(thawed, model)


def test_the_batch_normalisation_of_equinox_is_frozen_too(make):
    norm = lambda channels, key: eqx.nn.BatchNorm(channels, axis_name="batch", mode="batch")
    model, _ = make(image_size=8, stages=1, dim=16, heads=1, norm=norm)
    layer = freeze_norms(model).stages[0].blocks[0].mlp.expand.norm.layer
    assert layer.inference and not model.stages[0].blocks[0].mlp.expand.norm.layer.inference


def norms_in(tree):
    is_norm = lambda node: isinstance(node, levitax.nn.BatchNorm)
    return [node for node in jax.tree.leaves(tree, is_leaf=is_norm) if is_norm(node)]


@pytest.mark.parametrize("distillation", (False, True))
def test_a_linear_probe_trains_the_head_alone(distillation, make):
    model, _ = make(distillation=distillation)
    probe = head_only(model)
    assert tree_equal(probe.head, trainable(model.head))
    assert levitax.count_parameters(probe) == levitax.count_parameters(model.head) > 0
    # Combined with the rest, the probe is the original model.
    assert tree_equal(eqx.combine(probe, model), model)
