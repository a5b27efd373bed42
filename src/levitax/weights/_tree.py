import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from .. import nn
from .._config import LeViTConfig
from .._fuse import fold_norms, fuse
from .._model import LeViT
from .._outline import is_fused
from ._entries import Shape


# Reads the array at a dotted path. Running statistics are at `<path of the BatchNorm>.mean` and `.var`.
Reader = Callable[[str], Array | np.ndarray]
Model = TypeVar("Model")
# "whole": as in training; "folded": normalisations folded in, as other libraries fuse a model; "fused": the result of
# `levitax.fuse`.
Form: TypeAlias = Literal["whole", "folded", "fused"]


@lru_cache(maxsize=8)
def skeleton(config: LeViTConfig, form: Form = "whole") -> tuple[LeViT, eqx.nn.State]:
    """A model and its state with shapes instead of arrays. Allocates nothing and draws no random numbers."""

    def make(key):
        model, state = eqx.nn.make_with_state(LeViT)(**vars(config), key=key)
        if form == "whole":
            return model, state
        if form == "folded":
            return fold_norms(model, state)
        predict = fuse(model, state)
        return predict.model, predict.state

    return eqx.filter_eval_shape(make, jax.eval_shape(lambda: jax.random.key(0)))


def shapes(model: eqx.Module) -> dict[str, Shape]:
    """The shape of each array by path."""
    found = {}
    for path, node in _nodes(model):
        if _is_norm(node):
            found |= {f"{path}.{leaf}": node.weight.shape for leaf in ("weight", "bias", "mean", "var")}
        else:
            found[path] = node.shape
    return found


def arrays(model: eqx.Module, state: eqx.nn.State | None) -> dict[str, Array]:
    """Each array by path. Without `state`, the model must not be split from its state yet."""
    found = {}
    for path, node in _nodes(model):
        if _is_norm(node):
            running: Any = node.statistics.init if state is None else node.running(state)
            if not isinstance(running, nn.RunningStatistics):
                raise ValueError(
                    "`model` is already split from its state: use `levitax.weights.load_into(model, state, source)`."
                )
            found |= {f"{path}.weight": node.weight, f"{path}.bias": node.bias}
            found |= {f"{path}.mean": running.mean, f"{path}.var": running.var}
        else:
            found[path] = node
    return found


def checked_arrays(model: LeViT, state: eqx.nn.State | None, *, allow_fused: bool = False) -> dict[str, Array]:
    """Like `arrays`, for a LeViT that matches its configuration.

    **Raises:** `ValueError` if it does not, because parts were changed, or if it is fused and that is not allowed.
    """
    fused = is_fused(model)
    if fused and not allow_fused:
        raise ValueError("`model` is fused and has no normalisations: pass the model from before fusing.")
    own = dataclasses.replace(model.config, norm=None, attention_bias=None)
    as_made = skeleton(own, "fused" if fused else "whole")[0]
    expected, found = _parts(as_made), _parts(model)
    different = [name for name in ("norm", "attention_bias") if getattr(model.config, name) is not None]
    different += sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    if different or _structure(as_made) != _structure(model):
        where = f", at {', '.join(different[:8])}{', ...' if different[8:] else ''}" if different else ""
        raise ValueError(
            f"`model` does not match its configuration as files describe it: parts were added or changed{where}. Pass "
            "the model as `levitax.LeViT` makes it without factories of your own. Or write it with "
            '`eqx.tree_serialise_leaves("model.eqx", (model, state))`, and read it with '
            '`eqx.tree_deserialise_leaves("model.eqx", like)`, where `like` is a model and a state made in the same '
            "way."
        )
    return arrays(model, state)


def _parts(model: LeViT) -> dict[str, Any]:
    """The shape of each array, and each function and rate, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    others = {_dotted(path): leaf for path, leaf in leaves if callable(leaf) or isinstance(leaf, float)}
    return shapes(model) | others


def _structure(model: LeViT) -> Any:
    """The classes of all parts and their static fields. An index of the state differs inside a larger module."""
    is_index = lambda node: isinstance(node, eqx.nn.StateIndex)
    return jax.tree.structure(jax.tree.map(lambda node: 0, (model.stem, model.stages, model.head), is_leaf=is_index))


def fill(model: Model, state: eqx.nn.State, read: Reader) -> tuple[Model, eqx.nn.State]:
    """The model and its state with the arrays from `read`, in float32. `state` stays usable."""
    # A copy, since `State.set` invalidates the state that it is called on. It also needs arrays.
    to_array = lambda leaf: np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    state = jax.tree.map(to_array, state)

    def keep(norm, statistics):
        nonlocal state
        state = state.set(norm.statistics, statistics)
        return norm.statistics

    model = _replace(model, read, keep)
    return model, state


def fill_initial(model: Model, read: Reader) -> Model:
    """Like `fill`, for a model that is not split from its state yet: sets its initial running statistics."""
    return _replace(model, read, lambda norm, statistics: eqx.nn.StateIndex(statistics))


def _replace(model: Model, read: Reader, index: Callable[[Any, Any], eqx.nn.StateIndex]) -> Model:
    def get(path):
        # A copy, because `device_put` may share the memory of a mapped file. NumPy makes it, because JAX would compile
        # a program for each shape.
        return jax.device_put(np.array(read(path), np.float32))

    def put(path, node):
        path = _dotted(path)
        if _is_norm(node):
            statistics = nn.RunningStatistics(get(f"{path}.mean"), get(f"{path}.var"))
            new = get(f"{path}.weight"), get(f"{path}.bias"), index(node, statistics)
            return eqx.tree_at(lambda norm: (norm.weight, norm.bias, norm.statistics), node, new)
        return get(path) if _is_array(node) else node

    return jax.tree_util.tree_map_with_path(put, model, is_leaf=_is_norm)


def _nodes(model: eqx.Module) -> Iterator[tuple[str, Any]]:
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_norm):
        if _is_norm(node) or _is_array(node):
            yield _dotted(path), node


def _dotted(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_norm(node):
    return isinstance(node, nn.BatchNorm)


def _is_array(node):
    return eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct)
