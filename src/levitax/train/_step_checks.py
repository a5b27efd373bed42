from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree

from .._batched import batch_size
from ._optimizer import Parameters
from ._state import names_of, TrainState


def check_batch(images: PyTree) -> None:
    """Raises for a batch that no step can be made with, and where each device would make one with its own."""
    if batch_size("images", images) == 0:
        raise ValueError("`images` is an empty batch; expected at least one image. Leave empty batches out.")
    if jax.sharding.get_abstract_mesh().manual_axes:
        raise ValueError(
            "A step was called inside `jax.pmap` or `jax.shard_map`, where every device would train a model of its "
            "own on its part of the batch. Call it outside, with the batch spread by `levitax.train.make_mesh` and "
            "`levitax.train.shard_batch`."
        )


def step_check(
    optimizer: optax.GradientTransformation, parameters: Parameters, ema_decay: float | None
) -> Callable[[TrainState], None]:
    """A function that raises unless a train state was made for these options of a step. It looks at every structure of
    a train state once."""
    seen = set()

    def check(train_state: TrainState) -> None:
        structure = jax.tree.structure(train_state)
        if structure in seen:
            return
        _check_average(train_state.ema, ema_decay)
        _check_trained(train_state, parameters(train_state.model))
        _check_optimizer(train_state, jax.eval_shape(optimizer.init, parameters(train_state.model)))
        seen.add(structure)

    return check


def _check_average(ema: PyTree, ema_decay: float | None) -> None:
    if ema is None and ema_decay is not None:
        raise ValueError(
            f"`ema_decay` is {ema_decay}, and the train state keeps no average to move: make it with "
            "`TrainState(..., ema=True)`, or the step without `ema_decay=`."
        )
    if ema is not None and ema_decay is None:
        raise ValueError(
            "The train state keeps an average, and this step would never move it: make the step with `ema_decay=`, "
            "such as 0.99996, or the train state without `ema=True`."
        )


def _check_trained(train_state: TrainState, params: PyTree) -> None:
    here = names_of(params)
    if here == train_state.trained:
        return
    differing = sorted(set(here) ^ set(train_state.trained))
    raise ValueError(
        f"`parameters` picks {len(here)} arrays of the model, and the train state was made for "
        f"{len(train_state.trained)}: `{'`, `'.join(differing[:3])}`{', ...' if differing[3:] else ''} "
        f"{'is' if len(differing) == 1 else 'are'} in one of them. Pass the same `parameters=` to `TrainState` and "
        "`make_step`."
    )


def _check_optimizer(train_state: TrainState, expected: PyTree) -> None:
    form = lambda tree: (jax.tree.structure(tree), [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(tree)])
    if form(expected) != form(train_state.opt_state):
        raise ValueError(
            "`optimizer` keeps a state of another form than the one that the train state was made with. Pass the same "
            "optimiser to `TrainState` and `make_step`."
        )
