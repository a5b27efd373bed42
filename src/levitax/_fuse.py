import dataclasses
import operator
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from . import nn
from ._checks import check_callable, check_state
from ._host import on_host
from ._model import LeViT
from .nn._attention_bias import expand


Model = TypeVar("Model", bound=Callable[..., Any])


class Predictor(eqx.Module, Generic[Model]):
    """A model in inference mode, together with its state: `output = predict(image)`.

    [`levitax.fuse`][] returns a predictor with a fused model. `Predictor(model, state)` keeps the model unfused, for
    comparison. Call other methods of the model as `predict.model.features(image, predict.state)`.
    """

    model: Model
    state: eqx.nn.State

    def __init__(self, model: Model, state: eqx.nn.State):
        """**Arguments:**

        - `model`: called as `model(x, state) -> (output, state)`; the predictor puts it into inference mode.
        - `state`: the state of the model.

        **Raises:** `TypeError` if `state` is not an `eqx.nn.State`, or `model` cannot be called.
        """
        check_callable("model", model, "a model, or a function like one")
        check_state(state)
        self.model = eqx.nn.inference_mode(model)
        self.state = state

    def __hash__(self) -> int:
        # `jax.jit` hashes its function. Its own error would be "unhashable type: ArrayImpl".
        raise TypeError(
            "A `Predictor` holds arrays and has no hash: instead of `jax.jit(predict)`, use `eqx.filter_jit(predict)`, "
            "or `jax.jit(jax.vmap(predict))` for a batch."
        )

    def __call__(self, *inputs: Any) -> Any:
        """Computes the model's output for one example. For a batch, use `jax.vmap(predict)`.

        **Arguments:**

        - `inputs`: the arguments of the model before the state. A [`levitax.LeViT`][] takes one image.

        **Returns:** the output of the model, without the state: the logits of a [`levitax.LeViT`][].

        **Raises:** `TypeError` without inputs or with a state among them; and the errors of the model.
        """
        if not inputs or any(isinstance(given, eqx.nn.State) for given in inputs):
            given = "with a state" if inputs else "without an input"
            raise TypeError(f"A `Predictor` was called {given}; it already holds its state: call `predict(image)`.")
        # A copy: a layer of the user's own may set its state even in inference, which invalidates the old one.
        output, _ = self.model(*inputs, jax.tree.map(lambda leaf: leaf, self.state))
        return output


def fuse(model: Model, state: eqx.nn.State) -> Predictor[Model]:
    """Folds everything that is constant in inference into the weights, and binds the model to the rest of its state.

    Every [`levitax.nn.BatchNorm`][] is folded into the layer before or after it; one without such a layer becomes a
    [`levitax.nn.Affine`][]. Attention biases are expanded to full matrices. The scale of the attention scores is folded
    into the queries. Two heads become one that computes the mean of their logits. Weights are stored in the dtype of
    the computation. The fused model runs the model's own forward pass.

    **Arguments:**

    - `model`: a [`levitax.LeViT`][], any layer of `levitax.nn`, or a module of your own that contains them.
    - `state`: its state, with the running statistics.

    **Returns:** a [`levitax.Predictor`][]: `logits = jax.vmap(predict)(images)`. It keeps the state of your own
    stateful layers.

    **Raises:** `TypeError` or `ValueError` if `state` is not the state of `model`, or `model` is a
    [`levitax.Predictor`][] already.
    """
    check_state(state)
    if isinstance(model, Predictor):
        raise TypeError("`model` is a `Predictor`. If it is fused already, use it; if not, fuse its `.model`.")
    folded = _fold_all(model, state)
    return Predictor(folded, state.substate(folded))


def fold_norms(model: Model, state: eqx.nn.State) -> tuple[Model, eqx.nn.State]:
    """Folds only the normalisations, into the linear layers and convolutions, as the PyTorch libraries do.

    [`levitax.fuse`][] can fuse the model further, with the rest of the state.
    """
    is_layer = lambda node: isinstance(node, nn.LinearNorm | nn.ConvNorm | nn.NormLinear)
    folded = jax.tree.map(lambda node: _fold(node, state) if is_layer(node) else node, model, is_leaf=is_layer)
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
    scaled = _scale_rows(layer, affine.scale)
    bias = affine.shift if layer.bias is None else on_host(operator.add, scaled.bias, affine.shift)
    return _with(scaled, bias=bias, norm=None)


@_fold.register
def _(layer: nn.NormLinear, state: eqx.nn.State) -> nn.NormLinear:
    if layer.norm is None:
        return layer
    affine = layer.norm.affine(state)
    fold = lambda weight, bias, scale, shift: (weight * scale[None, :], bias + weight @ shift)
    weight, bias = on_host(fold, layer.weight, layer.bias, affine.scale, affine.shift)
    return _with(layer, weight=weight, bias=bias, norm=None)


@_fold.register
def _(bias: nn.AttentionBias, state: eqx.nn.State) -> nn.GatheredAttentionBias:
    del state
    return nn.GatheredAttentionBias(on_host(partial(expand, stride=bias.stride, scale=bias.scale), bias.table))


@_fold.register
def _(layer: nn.QueryKeyValue, state: eqx.nn.State) -> nn.QueryKeyValue:
    linear = _fold(layer.linear, state)
    is_query = np.arange(linear.weight.shape[0] // layer.heads) < layer.key_dim
    scale = np.tile(np.where(is_query, layer.scale, 1.0), layer.heads).astype(linear.weight.dtype)
    return dataclasses.replace(layer, linear=_scale_rows(linear, scale), scale=1.0)


@_fold.register
def _(layer: nn.SubsampledQueryKeyValue, state: eqx.nn.State) -> nn.SubsampledQueryKeyValue:
    query = _fold(layer.query, state)
    query = _scale_rows(query, np.full(query.weight.shape[0], layer.scale, query.weight.dtype))
    return dataclasses.replace(layer, query=query, key_value=_fold(layer.key_value, state), scale=1.0)


@_fold.register
def _(head: nn.DistilledHead, state: eqx.nn.State) -> nn.NormLinear:
    heads = _fold(head.classification, state), _fold(head.distillation, state)
    return jax.tree.map(partial(on_host, lambda one, other: (one + other) / 2), *heads)


@_fold.register
def _(model: LeViT, state: eqx.nn.State) -> LeViT:
    stem, stages, head = _fold_all((model.stem, model.stages, model.head), state)
    # Cast once. Casting in each call takes a seventh of the time of LeViT-256 in bfloat16, batch 16, on two cores.
    is_layer = lambda node: isinstance(node, nn.LinearNorm | nn.ConvNorm)
    layers, rest = eqx.partition((stem, stages), is_layer, is_leaf=is_layer)
    cast = lambda array: array.astype(jnp.dtype(model.config.dtype))
    layers = jax.tree.map(partial(on_host, cast), layers)
    stem, stages = eqx.combine(layers, rest, is_leaf=is_layer)
    return _with(model, stem=stem, stages=stages, head=head)


def _scale_rows(layer, scale):
    """Multiplies weight and bias by a number for each output."""
    rows = lambda array, scale: array * scale.reshape(-1, *(1,) * (array.ndim - 1))
    bias = None if layer.bias is None else on_host(rows, layer.bias, scale)
    return _with(layer, weight=on_host(rows, layer.weight, scale), bias=bias)


def _with(layer, **fields):
    where = lambda node: [getattr(node, name) for name in fields]
    return eqx.tree_at(where, layer, list(fields.values()), is_leaf=lambda node: node is None)


def check_levit(model: Any) -> None:
    """Raises unless `model` is a LeViT."""
    if not isinstance(model, LeViT):
        raise TypeError(
            f"`model` is of type `{type(model).__name__}`; expected a `levitax.LeViT`. From a module of your own, pass "
            "the LeViT inside, such as `module.backbone`, with the state of the module. From a `Predictor`, pass "
            "`predict.model` and `predict.state`."
        )
