import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import levitax
from levitax.train import adamw, decay_mask, trainable


MAPS = levitax.nn.ConvNorm, levitax.nn.LinearNorm, levitax.nn.NormLinear
networks = pytest.mark.parametrize("network", ("paper", "vit_pytorch"))


def kernels(tree):
    """The kernels of the stem, the linear maps and the heads."""
    is_map = lambda node: isinstance(node, MAPS)
    return [node.weight for node in jax.tree.leaves(tree, is_leaf=is_map) if is_map(node)]


@networks
def test_kernels_decay_and_nothing_else_does(network, make):
    model, _ = make(network=network)
    params = trainable(model)
    expected = eqx.tree_at(kernels, jax.tree.map(lambda _: False, params), replace_fn=lambda _: True)
    assert eqx.tree_equal(decay_mask(params), expected)


@networks
@pytest.mark.parametrize(("keywords", "decay"), [({}, 0.025), ({"weight_decay": 0.5}, 0.5)], ids=("default", "given"))
def test_without_gradients_only_kernels_shrink(network, keywords, decay, make):
    model, _ = make(network=network)
    ones = jax.tree.map(jnp.ones_like, trainable(model))
    optimizer = adamw(0.1, **keywords)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones)
    expected = eqx.tree_at(kernels, ones, replace_fn=lambda kernel: (1 - 0.1 * decay) * kernel)
    assert eqx.tree_equal(eqx.apply_updates(ones, updates), expected, rtol=1e-6, atol=0)


def test_floating_point_arrays_are_trainable(make):
    model, _ = make()
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable(model))) == levitax.count_parameters(model)
    tree = {"weight": jnp.ones(2), "index": jnp.arange(2), "activation": jax.nn.relu, "rate": 0.1}
    assert eqx.tree_equal(trainable(tree), {"weight": tree["weight"], "index": None, "activation": None, "rate": None})
