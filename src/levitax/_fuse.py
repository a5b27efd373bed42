import dataclasses
from collections.abc import Callable
from functools import singledispatch
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from . import nn
from ._checks import check_callable, check_state
from ._model import LeViT


Model = TypeVar("Model", bound=Callable[..., Any])


class Predictor(eqx.Module, Generic[Model]):
    """A model in inference, closed over its state: `output = predict(image)`.

    [`levitax.fuse`][] returns one whose model is folded. `Predictor(model, state)` holds the model as it is, for
    comparison. Other methods of the model are reached as `predict.model.features(image, predict.state)`.
    """

    model: Model
    state: eqx.nn.State

    def __init__(self, model: Model, state: eqx.nn.State):
        """**Arguments:**

        - `model`: called as `model(x, state) -> (output, state)`; put into inference mode here.
        - `state`: what was made with it.

        **Raises:** `TypeError` if `state` is no `eqx.nn.State`, or `model` cannot be called.
        """
        check_callable("model", model, "a model, or a function like one")
        check_state(state)
        self.model = eqx.nn.inference_mode(model)
        self.state = state

    def __hash__(self) -> int:
        # What `jax.jit` asks of a function, of which else comes "unhashable type: ArrayImpl".
        raise TypeError(
            "A `Predictor` holds arrays and has no hash: in place of `jax.jit(predict)` use `eqx.filter_jit(predict)`, "
            "or `jax.jit(jax.vmap(predict))` for a batch."
        )

    def __call__(self, *inputs: Any) -> Any:
        """The model's output for one example; use `jax.vmap(predict)` for a batch.

        **Arguments:**

        - `inputs`: what the model takes before the state, as a [`levitax.LeViT`][] one image.

        **Returns:** what the model returns before the state, as a [`levitax.LeViT`][] the logits.

        **Raises:** `TypeError` without inputs and if a state is among them; what the model raises.
        """
        if not inputs or any(isinstance(given, eqx.nn.State) for given in inputs):
            given = "with a state" if inputs else "without an input"
            raise TypeError(f"A `Predictor` was called {given}; it holds its state: call `predict(image)`.")
        # A copy, since a layer of the user's own may set its state even in inference, which uses up the old one.
        output, _ = self.model(*inputs, jax.tree.map(lambda leaf: leaf, self.state))
        return output


def fuse(model: Model, state: eqx.nn.State) -> Predictor[Model]:
    """Folds what is constant in inference into the weights, and closes the model over what remains of its state.

    Every [`levitax.nn.BatchNorm`][] disappears into the map before or after it (one that stands alone becomes a
    [`levitax.nn.Affine`][]), attention biases are gathered to full matrices, the scale of the scores goes into the
    queries, and two heads become the one that computes the mean of their logits. Weights are kept in the dtype that the
    model computes in. The forward pass is the model's own.

    **Arguments:**

    - `model`: a [`levitax.LeViT`][], any layer of `levitax.nn`, or a module of your own that contains them.
    - `state`: its state, with the running statistics.

    **Returns:** a [`levitax.Predictor`][]: `logits = jax.vmap(predict)(images)`. Other stateful layers of your own
    keep their part of the state in it.

    **Raises:** `TypeError` or `ValueError` if `state` is not the state of `model`, or `model` is a
    [`levitax.Predictor`][] already.
    """
    check_state(state)
    if isinstance(model, Predictor):
        raise TypeError("`model` is a `Predictor`, which has been fused already: use it, or fuse its `.model`.")
    folded = _fold_all(model, state)
    return Predictor(folded, state.substate(folded))


def fold_norms(model: Model, state: eqx.nn.State) -> tuple[Model, eqx.nn.State]:
    """The model with its normalisations folded into the maps, and nothing else changed, with what is left of its
    state: as PyTorch's libraries fuse one. [`levitax.fuse`][] takes it from there."""
    is_map = lambda node: isinstance(node, nn.LinearNorm | nn.ConvNorm | nn.NormLinear)
    folded = jax.tree.map(lambda node: _fold(node, state) if is_map(node) else node, model, is_leaf=is_map)
    return folded, state.substate(folded)


def _fold_all(tree, state):
    return jax.tree.map(lambda node: _fold(node, state), tree, is_leaf=_is_foldable)


@singledispatch
def _fold(node: Any, state: eqx.nn.State) -> Any:
    del state
    return node


def _is_foldable(node):
    return _fold.dispatch(type(node)) is not _fold.dispatch(object)


@_fold.register
def _(layer: nn.BatchNorm, state: eqx.nn.State) -> nn.Affine:
    return layer.affine(state)


@_fold.register(nn.LinearNorm)
@_fold.register(nn.ConvNorm)
def _(layer, state: eqx.nn.State):
    if layer.norm is None:
        return layer
    affine = layer.norm.affine(state)
    scale = jnp.expand_dims(affine.scale, tuple(range(1, layer.weight.ndim)))
    bias = affine.shift if layer.bias is None else affine.shift + affine.scale * layer.bias
    return _with(layer, weight=layer.weight * scale, bias=bias, norm=None)


@_fold.register
def _(layer: nn.NormLinear, state: eqx.nn.State) -> nn.NormLinear:
    if layer.norm is None:
        return layer
    affine = layer.norm.affine(state)
    bias = layer.bias + layer.weight @ affine.shift
    return _with(layer, weight=layer.weight * affine.scale[None, :], bias=bias, norm=None)


@_fold.register
def _(bias: nn.AttentionBias, state: eqx.nn.State) -> nn.GatheredAttentionBias:
    del state
    return nn.GatheredAttentionBias(bias())


@_fold.register
def _(layer: nn.QueryKeyValue, state: eqx.nn.State) -> nn.QueryKeyValue:
    linear = _fold(layer.linear, state)
    is_query = jnp.arange(linear.weight.shape[0] // layer.heads) < layer.key_dim
    scale = jnp.tile(jnp.where(is_query, layer.scale, 1.0).astype(linear.weight.dtype), layer.heads)
    return dataclasses.replace(layer, linear=_scale_rows(linear, scale), scale=1.0)


@_fold.register
def _(layer: nn.SubsampledQueryKeyValue, state: eqx.nn.State) -> nn.SubsampledQueryKeyValue:
    query = _fold(layer.query, state)
    query = _scale_rows(query, jnp.full(query.weight.shape[0], layer.scale, query.weight.dtype))
    return dataclasses.replace(layer, query=query, key_value=_fold(layer.key_value, state), scale=1.0)


@_fold.register
def _(head: nn.DistilledHead, state: eqx.nn.State) -> nn.NormLinear:
    heads = _fold(head.classification, state), _fold(head.distillation, state)
    return jax.tree.map(lambda one, other: (one + other) / 2, *heads)


@_fold.register
def _(model: LeViT, state: eqx.nn.State) -> LeViT:
    stem, stages, head = _fold_all((model.stem, model.stages, model.head), state)
    # Each call would convert them again: a seventh of the time of LeViT-256 in bfloat16, batch 16, on two cores.
    is_map = lambda node: isinstance(node, nn.LinearNorm | nn.ConvNorm)
    maps, rest = eqx.partition((stem, stages), is_map, is_leaf=is_map)
    maps = jax.tree.map(lambda array: array.astype(model.config.dtype), maps)
    stem, stages = eqx.combine(maps, rest, is_leaf=is_map)
    return _with(model, stem=stem, stages=stages, head=head)


def _scale_rows(layer, scale):
    return _with(layer, weight=layer.weight * scale[:, None], bias=None if layer.bias is None else layer.bias * scale)


def _with(layer, **fields):
    where = lambda node: [getattr(node, name) for name in fields]
    return eqx.tree_at(where, layer, list(fields.values()), is_leaf=lambda node: node is None)
