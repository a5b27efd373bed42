"""The recipe of a run, from the options of the command."""

import argparse
import ast
import contextlib
import dataclasses
import json
import math
from typing import Any

from ..train import Recipe, RECIPES
from ..train._reporting import say


def make_recipe(arguments: argparse.Namespace, preset: str) -> Recipe:
    """The preset, with the changes that the options give.

    **Raises:** `TypeError` or `ValueError` for fields that do not exist, are set twice or have invalid values.
    """
    given = given_fields(arguments)
    try:
        return Recipe.from_dict(RECIPES[preset].to_dict() | given)
    except (TypeError, ValueError) as error:
        way_out = "On the command line, `--set` sets a field, as in `--set warmup_epochs=0`."
        raise type(error)(f"{error} {way_out}") from None


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the recipe that the options set, each once."""
    given = [(name, getattr(arguments, name)) for name in ("epochs", "batch_size")]
    given = [(name, value) for name, value in given if value is not None]
    for assignment in arguments.set:
        name, _, value = assignment.partition("=")
        if not value:
            raise ValueError(f"`--set {assignment}` has no value; expected `--set FIELD=VALUE`.")
        given.append((name, _parse(value)))
    fields: dict[str, Any] = {}
    for name, value in given:
        if name in fields:
            raise ValueError(f"`{name}` is set twice, to {fields[name]!r} and to {value!r}; set it once.")
        fields[name] = value
    return fields


def fit_batch(recipe: Recipe, given: dict[str, Any], images: int) -> Recipe:
    """The recipe, with a smaller batch if an epoch of few images would have fewer than eight steps. A `batch_size` that
    is `given` stays."""
    if "batch_size" in given:
        return recipe
    # Batches of whole parts and groups, if these are given.
    unit = recipe.accumulate * (given.get("group_size") or 1)
    batch_size = unit * 2 ** max(math.ceil(math.log2(8 / unit)), (images // (8 * unit)).bit_length() - 1, 0)
    if batch_size >= recipe.batch_size:
        return recipe
    group_size = recipe.group_size
    if group_size is not None and batch_size // recipe.accumulate % group_size:
        group_size = None
    say(
        f"{images} images: batches of {batch_size}, not {recipe.batch_size}, and the learning rate is scaled down with "
        "them; `--batch-size` and `--set learning_rate=...` set both"
    )
    if group_size != recipe.group_size:
        say(f"a batch is one group, not groups of {recipe.group_size}; `--set group_size=...` sets it")
    changes: dict[str, Any] = {"batch_size": batch_size, "group_size": group_size}
    # Below the minimum, the cosine would rise.
    if "min_learning_rate" not in given and recipe.learning_rate * batch_size / 512 < recipe.min_learning_rate:
        changes["min_learning_rate"] = recipe.min_learning_rate * batch_size / recipe.batch_size
        say(f"the minimum learning rate is scaled down too, to {changes['min_learning_rate']:.2g}")
    return dataclasses.replace(recipe, **changes)


def _parse(text: str) -> Any:
    """A value in JSON or Python, or else the text."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return parse(text)
    return text
