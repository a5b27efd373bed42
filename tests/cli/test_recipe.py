"""The recipe that the options of a command make."""

import argparse
from typing import Any

import pytest

from levitax.train import Recipe, RECIPES


# The messages are those that a user sees.
pytestmark = pytest.mark.usefixtures("unchecked")
recipes: Any = pytest.importorskip("levitax.cli._recipe", reason="needs the extra `train`")
runs: Any = pytest.importorskip("levitax.cli._runs", reason="needs the extra `cli`")


def recipe_of(preset: str, *options: str, images: int = 10**6) -> Recipe:
    parser = argparse.ArgumentParser()
    runs.add_run_arguments(parser)
    arguments = parser.parse_args(options)
    return recipes.fit_batch(recipes.make_recipe(arguments, preset), recipes.given_fields(arguments), images)


@pytest.mark.parametrize("seed", ("-1", str(2**32), "x"))
def test_a_seed_out_of_range(seed, capsys):
    with pytest.raises(SystemExit):
        recipe_of("digits", "--seed", seed)
    assert f"argument --seed: {'invalid seed value: ' if seed == 'x' else seed}" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--set", "batch_size=1024"), ("--batch-size", "1024")])
def test_a_given_batch_size_stays(option, capsys):
    assert recipe_of("digits", *option, images=4000).batch_size == 1024
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "batch_size", "group_size"),
    [
        ((), 64, None),
        (("--set", "accumulate=4"), 64, None),
        (("--set", "group_size=32"), 64, 32),
        (("--set", "group_size=32", "accumulate=2"), 64, 32),
        (("--set", "group_size=128"), 128, 128),
    ],
    ids=str,
)
def test_a_few_images_make_small_batches_of_whole_groups(options, batch_size, group_size, capsys):
    recipe = recipe_of("paper", *options, images=512)
    assert (recipe.batch_size, recipe.group_size) == (batch_size, group_size)
    printed = capsys.readouterr().out
    assert f"512 images: batches of {batch_size}, not 2048, and the learning rate is scaled down with them" in printed
    assert ("a batch is one group, not groups of 256" in printed) == (group_size is None)


@pytest.mark.parametrize("images", (3, 10, 127))
def test_batches_have_at_least_eight_images(images):
    assert recipe_of("finetune", images=images).batch_size == 8


def test_many_images_leave_the_recipe_as_it_is(capsys):
    assert recipe_of("paper") == RECIPES["paper"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [("null", None), ("None", None), ("[0.5, 1]", (0.5, 1.0)), ("(0.5, 1.0)", (0.5, 1.0))],
)
def test_values_are_those_of_json_or_python(value, expected):
    assert recipe_of("paper", "--set", f"crop_scale={value}", "late=False", "by_epoch=false").crop_scale == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "1"), "`warmup_epochs` is 3 of 1 `epochs`.* as in `--set warmup_epochs=0`"),
        (("--epochs", "9", "--set", "epochs=8"), "`epochs` is set twice, to 9 and to 8"),
        (("--batch-size", "9", "--set", "batch_size=9"), "`batch_size` is set twice"),
        (("--set", "cutmix=0", "--set", "cutmix=1"), "`cutmix` is set twice, to 0 and to 1"),
        (("--set", "epochs="), "`--set epochs=` has no value; expected `--set FIELD=VALUE`"),
        (("--set", "epochs"), "`--set epochs` has no value"),
        (("--set", "epoch=9"), "There is no `epoch`.*'epochs'"),
        (("--set", "epochs=NaN"), "`epochs` is nan; expected an integer"),
        (("--set", "late=maybe"), "`late` is 'maybe'; expected True or False"),
    ],
    ids=str,
)
def test_invalid_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        recipe_of("finetune", *options)
