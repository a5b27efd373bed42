import dataclasses
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, overload, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import nn
from ._host import on_host
from ._model import LeViT
from ._model_checks import check_callable, check_state
from .nn._attention_bias import expand


Model = TypeVar("Model", bound=Callable[..., Any])
Model_co = TypeVar("Model_co", bound=Callable[..., Any], covariant=True)


class Predictor(eqx.Module, Generic[Model_co]):
    """A model in inference mode, together with its state: `output = predict(image)`.

    [`levitax.fuse`][] returns a predictor with a fused model. `Predictor(model, state)` keeps the model unfused, for
    comparison. Call other methods of the model as `predict.model.features(image, predict.state)`.
    """

    model: Model_co
    state: eqx.nn.State

    def __init__(self, model: Model_co, state: eqx.nn.State):
        """**Arguments:**

        - `model`: called as `model(x, state) -> (output, state)`; the predictor puts it into inference mode.
        - `state`: the state of the model.

        **Raises:** `TypeError` if `state` is not an `eqx.nn.State`, or `model` cannot be called.
        """
        check_callable("model", model, "a model, or a function like one")
        check_state(state)
        self.model = eqx.nn.inference_mode(model)
        self.state = state

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.model!r}"

    def __hash__(self) -> int:
        # `jax.jit` hashes its function. Its own error would be "unhashable type: ArrayImpl".
        raise TypeError(
            "A `Predictor` holds arrays and has no hash: instead of `jax.jit(predict)`, use `eqx.filter_jit(predict)`, "
            "or `jax.jit(jax.vmap(predict))` for a batch."
        )

    @overload
    def __call__(
        self: "Predictor[LeViT]", image: Float[Array, "height width channels"], /
    ) -> Float[Array, "*tokens classes"]: ...

    @overload
    def __call__(self, *inputs: Any) -> Any: ...

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

    @property
    def unfused(self) -> dict[str, type]:
        """The class of each part that [`levitax.fuse`][] left as it was, by its path in `model`.

        These are the modules inside a LeViT that are not of `levitax.nn`, such as another normalisation. Of a predictor
        that `fuse` did not make, also everything that it would fold.
        """
        return dict(_unfused("", self.model, inside=False))


def fuse(model: Model, state: eqx.nn.State) -> Predictor[Model]:
    """Folds everything that is constant in inference into the weights, and binds the model to the rest of its state.

    Every [`levitax.nn.BatchNorm`][] is folded into the layer before or after it; one without such a layer becomes a
    [`levitax.nn.Affine`][]. Attention biases are expanded to full matrices. The scale of the attention scores is folded
    into the queries. Two heads become one that computes the mean of their logits. Weights are stored in the dtype of
    the computation. The fused model runs the model's own forward pass.

    Only the classes of `levitax.nn` themselves are folded. Inside a LeViT, any other module stays as it is and is
    called as it was: another normalisation, a linear layer inside a module of your own, a subclass.
    [`levitax.Predictor.unfused`][] lists them.

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
    folded = jax.tree.map(lambda node: _fold(node, state), model, is_leaf=_is_ours)
    return Predictor(folded, state.substate(folded))


def fold_norms(model: Model, state: eqx.nn.State) -> tuple[Model, eqx.nn.State]:
    """Folds only the normalisations, into the linear layers and convolutions, as the PyTorch libraries do.

    [`levitax.fuse`][] can fuse the model further, with the rest of the state.
    """
    folded = jax.tree.map(
        lambda node: _fold(node, state) if _is_plain(node) else node, model, is_leaf=lambda node: _is_plain(node)
    )
    return folded, state.substate(folded)


def _fold(node: Any, state: eqx.nn.State) -> Any:
    """Folds a layer, or all layers of a larger part. A subclass may compute something else, and stays as it is."""
    if isinstance(node, LeViT):
        return _fold_levit(node, state)
    if type(node) in _ENTERED:
        fold = lambda node: _fold(node, state)
        # The node itself is no leaf, its children are.
        return jax.tree.map(fold, node, is_leaf=lambda child: child is not node)
    return _FOLDS.get(type(node), _keep)(node, state)


def _keep(node, state):
    del state
    return node


def _fold_linear(layer, state):
    if not _is_plain(layer) or layer.norm is None:
        return layer
    affine = layer.norm.affine(state)
    scaled = _scale_rows(layer, affine.scale)
    bias = affine.shift if layer.bias is None else on_host(operator.add, scaled.bias, affine.shift)
    return _with(scaled, bias=bias, norm=None)


def _fold_classifier(layer, state):
    if not _is_plain(layer) or layer.norm is None:
        return layer
    affine = layer.norm.affine(state)
    fold = lambda weight, bias, scale, shift: (weight * scale[None, :], bias + weight @ shift)
    weight, bias = on_host(fold, layer.weight, layer.bias, affine.scale, affine.shift)
    return _with(layer, weight=weight, bias=bias, norm=None)


def _fold_bias(bias, state):
    del state
    return nn.GatheredAttentionBias(on_host(partial(expand, stride=bias.stride, scale=bias.scale), bias.table))


def _fold_projection(layer, state):
    linear = _fold(layer.linear, state)
    if not _is_plain(linear):
        return _with(layer, linear=linear)
    is_query = np.arange(linear.weight.shape[0] // layer.heads) < layer.key_dim
    scale = np.tile(np.where(is_query, layer.scale, 1.0), layer.heads).astype(linear.weight.dtype)
    return dataclasses.replace(layer, linear=_scale_rows(linear, scale), scale=1.0)


def _fold_subsampled_projection(layer, state):
    query, key_value = _fold(layer.query, state), _fold(layer.key_value, state)
    if not _is_plain(query):
        return _with(layer, query=query, key_value=key_value)
    query = _scale_rows(query, np.full(query.weight.shape[0], layer.scale, query.weight.dtype))
    return dataclasses.replace(layer, query=query, key_value=key_value, scale=1.0)


def _fold_heads(head, state):
    one, other = _fold(head.classification, state), _fold(head.distillation, state)
    if not all(_is_plain(each) and each.norm is None for each in (one, other)):
        return _with(head, classification=one, distillation=other)
    mean = partial(on_host, lambda one, other: (one + other) / 2)
    return _with(one, weight=mean(one.weight, other.weight), bias=mean(one.bias, other.bias))


def _fold_levit(model, state):
    stem, stages, head = (_fold(part, state) for part in (model.stem, model.stages, model.head))
    # Cast once. Casting in each call takes a seventh of the time of LeViT-256 in bfloat16, batch 16, on two cores.
    is_leaf = lambda node: _is_plain(node) or (isinstance(node, eqx.Module) and type(node) not in _HOLD_FUSED)
    layers, rest = eqx.partition((stem, stages), _is_plain, is_leaf=is_leaf)
    cast = lambda array: array.astype(jnp.dtype(model.config.dtype))
    layers = jax.tree.map(partial(on_host, cast), layers)
    stem, stages = eqx.combine(layers, rest, is_leaf=is_leaf)
    return _with(model, stem=stem, stages=stages, head=head)


# The parts of a LeViT that are only folded by folding what is in them.
_ENTERED = (tuple, nn.Stem, nn.Stage, nn.Block, nn.Attention, nn.MLP)

_FOLDS: Mapping[type, Callable[[Any, eqx.nn.State], Any]] = {
    nn.BatchNorm: lambda norm, state: norm.affine(state),
    nn.LinearNorm: _fold_linear,
    nn.ConvNorm: _fold_linear,
    nn.NormLinear: _fold_classifier,
    nn.AttentionBias: _fold_bias,
    nn.QueryKeyValue: _fold_projection,
    nn.SubsampledQueryKeyValue: _fold_subsampled_projection,
    nn.DistilledHead: _fold_heads,
}


def _is_ours(node):
    return isinstance(node, (LeViT, *_ENTERED[1:], *_FOLDS))


def _is_plain(node):
    """Whether a normalisation can be folded into `node`, or has been."""
    if type(node) not in (nn.LinearNorm, nn.ConvNorm, nn.NormLinear) or type(node.norm) not in (
        nn.BatchNorm,
        type(None),
    ):
        return False
    is_numbers = lambda array: isinstance(array, jax.Array | np.ndarray)
    return is_numbers(node.weight) and (node.bias is None or is_numbers(node.bias))


def _unfused(path, node, inside):
    ours = type(node) in _HOLD_FUSED or isinstance(node, LeViT)
    if type(node) in _FUSED:
        return
    if isinstance(node, eqx.Module) and not ours and (inside or isinstance(node, tuple(_FOLDS))):
        yield path.removeprefix("."), type(node)
        return
    for name, child in jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda child: child is not node):
        if child is not node:
            yield from _unfused(f"{path}.{jax.tree_util.keystr(name, simple=True)}", child, inside or ours)


_FUSED = (nn.Affine, nn.GatheredAttentionBias, nn.DropPath, eqx.nn.Dropout)
_HOLD_FUSED = (
    *_ENTERED[1:],
    nn.LinearNorm,
    nn.ConvNorm,
    nn.NormLinear,
    nn.QueryKeyValue,
    nn.SubsampledQueryKeyValue,
    nn.DistilledHead,
    nn.ChannelsFirst,
    nn.PerToken,
)


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
