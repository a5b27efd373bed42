"""The recipe that the options of a command make."""

from typing import Any

import pytest

from levitax.train import Recipe, RECIPES


# The messages are those that a user sees.
pytestmark = pytest.mark.usefixtures("unchecked")
recipes: Any = pytest.importorskip("levitax.cli._recipe", reason="needs the extra `cli`")


def recipe_of(preset: str, images: int = 10**6, **changes: Any) -> Recipe:
    return recipes.fit_batch(recipes.make_recipe(RECIPES[preset], changes), changes, images)


def test_a_given_batch_size_stays(capsys):
    assert recipe_of("digits", batch_size=1024, images=4000).batch_size == 1024
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "batch_size", "group_size"),
    [
        ({}, 64, None),
        ({"accumulate": 4}, 64, None),
        ({"group_size": 32}, 64, 32),
        ({"group_size": 32, "accumulate": 2}, 64, 32),
        ({"group_size": 128}, 128, 128),
    ],
    ids=str,
)
def test_a_few_images_make_small_batches_of_whole_groups(changes, batch_size, group_size, capsys):
    recipe = recipe_of("paper", **changes, images=512)
    assert (recipe.batch_size, recipe.group_size) == (batch_size, group_size)
    printed = capsys.readouterr().out
    assert f"512 images: batches of {batch_size}, not 2048, and the learning rate is scaled down with them" in printed
    assert ("a batch is one group, not groups of 256" in printed) == (group_size is None)


@pytest.mark.parametrize(("images", "batch_size"), ((3, 3), (8, 8), (10, 8), (127, 8)))
def test_batches_have_at_least_eight_images_or_all(images, batch_size):
    assert recipe_of("finetune", images=images).batch_size == batch_size


def test_many_images_leave_the_recipe_as_it_is(capsys):
    assert recipe_of("paper") == RECIPES["paper"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.parametrize(("epochs", "warmup_epochs"), ((1, 0), (9, 1), (500, None)))
def test_a_short_run_has_a_short_warm_up(preset, epochs, warmup_epochs):
    expected = RECIPES[preset].warmup_epochs if warmup_epochs is None else warmup_epochs
    expected = min(expected, RECIPES[preset].warmup_epochs)
    assert recipe_of(preset, epochs=epochs).warmup_epochs == expected
    assert recipe_of(preset, epochs=10, warmup_epochs=4).warmup_epochs == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1, "warmup_epochs": 1}, "`warmup_epochs` is 1 of 1 `epochs`"),
        ({"epochs": 0}, "`epochs` is 0; expected an integer of at least 1"),
        ({"late": True}, "`late` is True and `by_epoch` False"),
    ],
    ids=str,
)
def test_invalid_options(changes, message):
    with pytest.raises(Exception, match=message):
        recipe_of("finetune", **changes)
