"""The recipe of a run, from the options of the command."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .._progress import say
from ..train import Recipe
from ._errors import usage


def make_recipe(preset: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The preset, with changes to its fields. A run too short for the warm-up of the preset gets a shorter one.

    **Raises:** `UsageError` for invalid values.
    """
    recipe = {**preset.to_dict(), **changes}
    if "epochs" in changes and "warmup_epochs" not in changes:
        recipe["warmup_epochs"] = min(recipe["warmup_epochs"], recipe["epochs"] // 5)
    with usage():
        return Recipe.from_dict(recipe)


def fit_batch(recipe: Recipe, changes: Mapping[str, Any], images: int) -> Recipe:
    """The recipe, with a smaller batch if an epoch of few images would have fewer than eight steps: of at least eight
    images, or of all. A `batch_size` in `changes` stays."""
    if "batch_size" in changes:
        return recipe
    # Batches of whole parts and groups, if these are given.
    unit = recipe.accumulate * (changes.get("group_size") or 1)
    batch_size = unit * 2 ** max(math.ceil(math.log2(8 / unit)), (images // (8 * unit)).bit_length() - 1, 0)
    batch_size = min(batch_size, max(images // unit, 1) * unit)
    if batch_size >= recipe.batch_size:
        return recipe
    say(
        f"{images} images: batches of {batch_size}, not {recipe.batch_size}, and the learning rate is scaled down with "
        "them; --batch-size and --learning-rate set both"
    )
    group_size = recipe.group_size
    if group_size is not None and batch_size // recipe.accumulate % group_size:
        group_size = None
        say(f"a batch is one group, not groups of {recipe.group_size}; --group-size sets it")
    fitted: dict[str, Any] = {"batch_size": batch_size, "group_size": group_size}
    # Below the minimum, the cosine would rise.
    if "min_learning_rate" not in changes and recipe.learning_rate * batch_size / 512 < recipe.min_learning_rate:
        fitted["min_learning_rate"] = recipe.min_learning_rate * batch_size / recipe.batch_size
        say(f"the minimum learning rate is scaled down too, to {fitted['min_learning_rate']:.2g}")
    return dataclasses.replace(recipe, **fitted)
