import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import levitax
from levitax.train import head_only, layer_groups, make_step, scale_by_layer, trainable, TrainState
from tests.equality import tree_equal


# The groups of the model of `make`, with the path to each.
PATHS: dict[str, Any] = {
    "head": lambda model: model.head,
    "stages.1": lambda model: model.stages[1],
    "stages.0": lambda model: model.stages[0],
    "stem": lambda model: model.stem,
}
DECAY = 0.7


class Detector(eqx.Module):
    """A user's module: a LeViT in a list, a layer before it and a layer after it."""

    before: eqx.nn.Linear
    backbones: list[levitax.LeViT]
    after: eqx.nn.Linear

    def __init__(self, *backbones, key):
        self.before, self.after = (eqx.nn.Linear(2, 2, dtype=jnp.float32, key=key) for _ in range(2))
        self.backbones = list(backbones)


def scaled(tree, by_path):
    """Returns the tree with the arrays at each path times a number."""
    for where, number in by_path:
        tree = eqx.tree_at(where, tree, jax.tree.map(lambda leaf, number=number: number * leaf, where(tree)))
    return tree


def apply(optimizer, updates):
    return jax.jit(lambda updates: optimizer.update(updates, optimizer.init(updates), updates)[0])(updates)


@pytest.mark.parametrize(
    ("keywords", "names"),
    [
        ({}, ("head", "stages.1", "stages.0", "stem")),
        ({"distillation": False, "stages": 1, "dim": 16, "heads": 1}, ("head", "stages.0", "stem")),
        ({"num_classes": 0}, ("stages.1", "stages.0", "stem")),
    ],
    ids=str,
)
def test_groups_run_from_the_head_to_the_stem(keywords, names, make):
    model, _ = make(**keywords)
    groups = layer_groups(model)
    # The same without arrays that are not trained.
    assert groups.names == layer_groups(trainable(model)).names == names
    assert set(jax.tree.leaves(groups(trainable(model)))) == set(names)


def test_groups_cannot_be_changed(make):
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer_groups(make()[0]).names = ()  # type: ignore[misc]


@pytest.mark.parametrize("name", PATHS)
def test_each_array_has_the_name_of_its_group(name, make):
    params = trainable(make()[0])
    labels = layer_groups(params)(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert set(jax.tree.leaves(PATHS[name](labels))) == {name}


@pytest.mark.parametrize("nothing", (None, optax.MaskedNode()), ids=("none", "masked"))
def test_arrays_that_are_left_out_have_no_name(nothing, make):
    model, _ = make()
    groups = layer_groups(model)
    params = eqx.tree_at(lambda params: (params.head, params.stages[0].blocks), trainable(model), (nothing, nothing))
    labels = groups(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert set(jax.tree.leaves(labels)) == {"stages.1", "stem"}
    # A group keeps its name, and its distance from the head, if the head is not trained.
    assert layer_groups(params).names == groups.names


def test_each_group_may_have_an_optimiser(make):
    params = trainable(make()[0])
    groups = layer_groups(params)
    rates = {name: 0.1 * DECAY**depth for depth, name in enumerate(groups.names)}
    ours = apply(optax.multi_transform({name: optax.sgd(rate) for name, rate in rates.items()}, groups), params)
    expected = scaled(params, [(PATHS[name], -rate) for name, rate in rates.items()])
    assert tree_equal(ours, expected, rtol=1e-6)


def test_updates_are_scaled_by_the_distance_from_the_head(make):
    params = trainable(make()[0])
    with jax.numpy_dtype_promotion("strict"):
        ours = apply(scale_by_layer(DECAY), params)
    assert tree_equal(ours, scaled(params, [(where, DECAY**depth) for depth, where in enumerate(PATHS.values())]))


def test_a_linear_probe_has_the_whole_rate(make):
    params = head_only(make()[0])
    assert tree_equal(apply(scale_by_layer(DECAY), params), params)


def test_a_module_around_the_model_belongs_to_the_head(make, key):
    params = trainable(Detector(make(num_classes=0)[0], key=key))
    groups = layer_groups(params)
    assert groups.names == ("head", "stages.1", "stages.0", "stem")
    labels = groups(params)
    assert set(jax.tree.leaves((labels.before, labels.after))) == {"head"}
    assert set(jax.tree.leaves(labels.backbones[0].stem)) == {"stem"}
    ours = apply(scale_by_layer(DECAY), params)
    assert tree_equal((ours.before, ours.after), (params.before, params.after))
    assert tree_equal(ours.backbones[0].stem, scaled(params.backbones[0].stem, [(lambda stem: stem, DECAY**3)]))


@pytest.mark.parametrize("accumulate", (1, pytest.param(2, marks=pytest.mark.slow)))
def test_a_step_scales_the_updates(accumulate, make, images, key):
    model, state = make(image_size=8, stages=1, dim=16, heads=1)
    # With a momentum of 0, the state of the optimiser is the gradient.
    optimizer = optax.chain(optax.sgd(1.0, momentum=0.0), scale_by_layer(0.5))
    train_state = TrainState(model, state, optimizer, key=key)
    with jax.numpy_dtype_promotion("strict"):
        after, _ = make_step(accumulate=accumulate)(train_state, images(4, 8, 8, 3), jnp.arange(4))
    opt_state: Any = after.opt_state
    gradient = opt_state[0][0].trace
    factors = [(PATHS["head"], 1), (PATHS["stages.0"], 0.5), (PATHS["stem"], 0.25)]
    expected = eqx.apply_updates(model, scaled(gradient, [(where, -factor) for where, factor in factors]))
    assert tree_equal(trainable(after.model), trainable(expected), rtol=1e-5, atol=1e-6)
    assert all(optax.tree.norm(where(gradient)) > 1e-3 for where, _ in factors)


@pytest.mark.parametrize("tree", ({}, {"kernel": jnp.ones(3)}, [jnp.ones(3)]), ids=str)
def test_a_tree_without_a_model_is_refused(tree):
    message = rf"A `{type(tree).__name__}` contains no LeViT; expected a `levitax\.LeViT`, or a module with one"
    for group in (layer_groups, lambda tree: apply(scale_by_layer(DECAY), tree)):
        with pytest.raises(TypeError, match=message):
            group(tree)


def test_a_module_with_two_models_is_refused(make, key):
    model, _ = make()
    with pytest.raises(
        ValueError, match=r"A `Detector` contains 2 LeViTs, at `\.backbones\[0\]` and `\.backbones\[1\]`; expected one"
    ):
        layer_groups(Detector(model, model, key=key))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("decay", (0, -0.5, 1.1, math.nan, "0.7", True, None))
def test_decays_are_above_0_and_at_most_1(decay):
    with pytest.raises(
        ValueError, match=rf"`decay` is {decay!r}; expected a number above 0 and at most 1, where 1 turns it off\."
    ):
        scale_by_layer(decay)
