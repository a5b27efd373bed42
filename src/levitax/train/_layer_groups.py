import dataclasses

import jax
import optax
from jaxtyping import PyTree

from .._checks import as_layer_decay
from .._model import LeViT
from ._optimizer import trainable


@dataclasses.dataclass(frozen=True)
class LayerGroups:
    """The groups of [`levitax.train.layer_groups`][], and a function that labels parameters with their names.

    **Attributes:**

    - `names`: the names of the groups, from the head to the stem.
    """

    names: tuple[str, ...]

    def __call__(self, params: PyTree) -> PyTree:
        """Labels each leaf of `params` with the name of its group.

        **Arguments:**

        - `params`: the model, its trained arrays, their gradient or their updates.

        **Returns:** a tree with the structure of `params` and a `str` for each leaf.

        **Raises:** `TypeError` or `ValueError` unless there is one LeViT in `params`.
        """
        levit_path, _ = _find_levit(params)
        return jax.tree_util.tree_map_with_path(lambda path, _: _name_of(path, levit_path), params)


def layer_groups(model: PyTree) -> LayerGroups:
    """Groups the parameters of a LeViT by their distance from the output, to train each group in its own way.

    The head is first, then the stages from the last to the first, then the stem: `("head", "stages.2", "stages.1",
    "stages.0", "stem")`. The groups work with optax. For example, with a learning rate that decreases from group to
    group:

    ```python
    groups = layer_groups(model)
    optimizer = optax.multi_transform(
        {name: optax.adam(1e-3 * 0.7**depth) for depth, name in enumerate(groups.names)}, groups
    )
    ```

    Pass `groups`, the function, rather than `groups(params)`. A tree of labels has the type of the model, which is
    callable, so optax would call it.

    **Arguments:**

    - `model`: a [`levitax.LeViT`][], or a module with one inside. Everything outside the LeViT belongs to "head".

    **Returns:** a [`levitax.train.LayerGroups`][]. There is no "head" if the LeViT has `num_classes=0` and no trainable
    array is outside it.

    **Raises:** `TypeError` if there is no LeViT in `model`; `ValueError` if there are several.
    """
    _, levit = _find_levit(model)
    stages = reversed(range(levit.config.stages))
    names = ("head", *(f"stages.{stage}" for stage in stages), "stem")
    # The head may have no array here because it is not trained.
    has_head = levit.config.num_classes > 0 or "head" in jax.tree.leaves(LayerGroups(names)(trainable(model)))
    return LayerGroups(names if has_head else names[1:])


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies the updates of each group of [`levitax.train.layer_groups`][] by a factor: 1 for the first group, and
    for each further group `decay` times the factor before.

    ELECTRA (Clark et al. 2020, arXiv 2003.10555) and BEiT (Bao et al. 2021, arXiv 2106.08254) fine-tune with such a
    decay from layer to layer. Here the groups are whole stages. Chain it after the optimiser:

    ```python
    optimizer = optax.chain(adamw(1e-3), scale_by_layer(0.7))
    ```

    **Arguments:**

    - `decay`: above 0 and at most 1, where 1 turns it off.

    **Returns:** an optax transformation without a state. Its update raises the errors of `layer_groups`.

    **Raises:** `ValueError` for a `decay` outside this range.
    """
    decay = as_layer_decay("decay", decay)

    def scale(updates, params):
        del params
        groups = layer_groups(updates)
        scales = {name: decay**depth for depth, name in enumerate(groups.names)}
        return jax.tree.map(lambda update, name: scales[name] * update, updates, groups(updates))

    return optax.stateless(scale)


def find_levits(tree: PyTree) -> list[tuple[jax.tree_util.KeyPath, LeViT]]:
    """Finds each LeViT in `tree`, with its path."""
    is_levit = lambda node: isinstance(node, LeViT)
    return [
        (path, node) for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_levit) if is_levit(node)
    ]


def _find_levit(tree):
    found = find_levits(tree)
    if not found:
        raise TypeError(
            f"A `{type(tree).__name__}` contains no LeViT; expected a `levitax.LeViT`, or a module with one inside. "
            "For other models, a recipe needs `layer_decay=1`."
        )
    if len(found) > 1:
        places = " and ".join(f"`{jax.tree_util.keystr(path)}`" for path, _ in found)
        raise ValueError(
            f"A `{type(tree).__name__}` contains {len(found)} LeViTs, at {places}; expected one. Pass a part "
            "of the module with one of them; a recipe for the whole module needs `layer_decay=1`."
        )
    return found[0]


def _name_of(path, levit_path):
    """The group of the leaf at `path`, in a tree with a LeViT at `levit_path`."""
    if path[: len(levit_path)] != levit_path:
        return "head"
    match jax.tree_util.keystr(path[len(levit_path) :], simple=True, separator=".").split("."):
        case ["stem", *_]:
            return "stem"
        case ["stages", stage, *_]:
            return f"stages.{stage}"
        case _:
            return "head"
