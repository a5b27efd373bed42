import dataclasses
import json
import math
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax.nn import DistilledLogits
from levitax.train import (
    adamw,
    cross_entropy,
    distillation_loss,
    head_only,
    Recipe,
    RECIPES,
    scale_by_layer,
    TeacherTargets,
    trainable,
)
from tests.equality import tree_equal


presets = pytest.mark.parametrize("name", RECIPES)
PAPER = RECIPES["paper"]
FIELDS = [field.name for field in dataclasses.fields(Recipe)]


def fails(kind, *fragments):
    """Expects an error of `kind` whose message has the fragments, in order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, fragments)))


def through_json(recipe):
    return Recipe.from_dict(json.loads(json.dumps(recipe.to_dict(), allow_nan=False)))


@presets
def test_presets_go_through_json(name):
    recipe = RECIPES[name]
    again = through_json(recipe)
    assert again == recipe and hash(again) == hash(recipe)
    assert replace(recipe) == recipe


@presets
def test_recipes_cannot_be_changed(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES[name].epochs = 1  # type: ignore[misc]


def test_presets_are_all_different():
    assert len(set(RECIPES.values())) == len(RECIPES) >= 4


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_explained(name):
    assert re.search(rf"^ *- .*`{name}`.*:", Recipe.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize(("batch_size", "peak"), [(2048, 2e-3), (8192, 8e-3)])
def test_the_learning_rates_of_the_paper(batch_size, peak):
    rates = np.asarray(replace(PAPER, batch_size=batch_size).schedule(625)(625 * np.arange(1000)))
    # Every epoch has the rate of the epoch before. The first and last rates are not scaled by the batch size.
    epochs = np.maximum(np.arange(1000) - 1, 0)
    line = 1e-6 + epochs * (peak - 1e-6) / 5
    cosine = 1e-5 + (peak - 1e-5) * (1 + np.cos(np.pi * epochs / 1000)) / 2
    np.testing.assert_allclose(rates, np.where(epochs < 5, line, cosine), rtol=1e-4)
    np.testing.assert_allclose(rates[:2], 1e-6, rtol=1e-6)


def test_a_schedule_may_be_by_step_and_without_warm_up():
    recipe = replace(RECIPES["probe"], epochs=4, batch_size=1024, learning_rate=0.1, min_learning_rate=0.02)
    np.testing.assert_allclose(recipe.schedule(5)(np.array([0, 10, 20])), [0.2, 0.11, 0.02], rtol=1e-5)


CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "decay": {"weight_decay": 0.5},
    "eps": {"eps": 0.1},
    "clipping": {"eps": 0.1, "clipping": 0.001},
    "no clipping": {"eps": 0.1, "clipping": None},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_optimiser_is_adamw_with_the_numbers_of_the_recipe(changes):
    recipe = replace(PAPER, **changes)
    rng = np.random.default_rng(0)
    params, gradient = rng.normal(size=(2, 3, 4))
    optimizer = recipe.optimizer(10)
    update, _ = optimizer.update(
        jnp.asarray(gradient, jnp.float32), optimizer.init(jnp.zeros((3, 4))), jnp.asarray(params, jnp.float32)
    )
    if recipe.clipping is not None:
        norms = [np.linalg.norm(array, axis=1, keepdims=True) for array in (params, gradient)]
        gradient = gradient * np.minimum(1, recipe.clipping * norms[0] / norms[1])
    adam = gradient / (np.abs(gradient) + recipe.eps)
    np.testing.assert_allclose(np.asarray(update), -1e-6 * (adam + recipe.weight_decay * params), rtol=1e-4)


@pytest.mark.parametrize("changes", ({}, {"clipping": None}), ids=str)
def test_the_layer_decay_scales_the_updates_of_the_optimiser(changes, make):
    params = trainable(make(image_size=8, stages=1, dim=16, heads=1)[0])
    updates, opt_states = [], []
    for decay in (1.0, 0.5):
        optimizer = replace(PAPER, **changes, layer_decay=decay).optimizer(10)
        opt_states.append(optimizer.init(params))
        updates.append(jax.jit(optimizer.update)(params, opt_states[-1], params)[0])
    whole, ours = updates
    # Compiled with AdamW, the product may round in another way.
    assert tree_equal(ours, scale_by_layer(0.5).update(whole, optax.EmptyState())[0], rtol=1e-6)
    assert not tree_equal(ours.stem, whole.stem)
    # With 1, a checkpoint of the optimiser's state fits as without the field.
    plain = adamw(PAPER.schedule(10), clipping=replace(PAPER, **changes).clipping).init(params)
    assert jax.tree.structure(opt_states[0]) == jax.tree.structure(plain)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", (0, -0.1, 1.1, math.nan, "0.5", True, None))
def test_the_layer_decay_is_above_0_and_at_most_1(value):
    with fails(
        ValueError, f"`layer_decay` is {value!r}; expected a number above 0 and at most 1, where 1 turns it off."
    ):
        replace(PAPER, layer_decay=value)
    for value in (1e-3, 1, np.float32(0.5)):
        changed = replace(PAPER, layer_decay=value)
        assert changed.layer_decay == value and type(changed.layer_decay) is float


LOGITS = DistilledLogits(*jnp.asarray(np.random.default_rng(0).normal(0, 2, (2, 4, 5)), jnp.float32))
LABELS = jnp.array([0, 1, 2, 4])
TARGETS = TeacherTargets(LABELS, jnp.asarray(np.random.default_rng(1).normal(0, 2, (4, 5)), jnp.float32))


@pytest.mark.parametrize("smoothing", (0.0, 0.3))
def test_without_a_teacher_the_loss_is_the_cross_entropy(smoothing):
    recipe = replace(PAPER, distillation="none", label_smoothing=smoothing)
    expected = cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
    assert recipe.loss()(LOGITS, LABELS) == expected


@pytest.mark.parametrize(
    "keywords",
    [{"kind": "hard", "alpha": 0.3}, {"kind": "soft", "alpha": 0.5, "temperature": 3.0}, {"kind": "hard"}],
    ids=str,
)
def test_with_a_teacher_the_loss_is_that_of_distillation(keywords):
    changes = {"distillation" if name == "kind" else name: value for name, value in keywords.items()}
    recipe = replace(PAPER, **changes, label_smoothing=0.2)
    expected = distillation_loss(LOGITS, TARGETS, **keywords, label_smoothing=0.2)
    assert recipe.loss()(LOGITS, TARGETS) == expected


@pytest.mark.parametrize(("name", "parameters"), [("paper", trainable), ("probe", head_only)])
def test_the_recipe_selects_the_trainable_parameters(name, parameters, make):
    model, _ = make(image_size=8, stages=1, dim=16, heads=1)
    assert tree_equal(RECIPES[name].parameters(model), parameters(model))


@pytest.mark.parametrize("drop_path", (None, 0.0, 0.1))
def test_the_recipe_sets_the_fields_of_the_model(drop_path):
    recipe = replace(PAPER, drop_path=drop_path, dtype="bfloat16", remat=True)
    keywords: dict[str, Any] = {"drop_path": 0.3}
    config = levitax.LeViTConfig(**keywords | recipe.model_overrides())
    assert (config.dtype, config.remat) == ("bfloat16", True)
    # With `None`, the model keeps its drop path.
    assert config.drop_path == (0.3 if drop_path is None else drop_path)


def test_missing_fields_are_those_of_the_paper():
    assert Recipe.from_dict({}) == PAPER
    assert Recipe.from_dict({"epochs": 300}) == replace(PAPER, epochs=300)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("learnin_rate", "'learning_rate'"),
        ("epoch", "'epochs'"),
        ("dropPath", "'drop_path'"),
        ("average_decay", "'ema_decay'"),
    ],
)
def test_a_field_that_does_not_exist(name, near):
    with fails(TypeError, f"There is no `{name}`", "Did you mean", near):
        Recipe.from_dict({name: 1})


def test_a_field_that_resembles_none_gets_no_suggestion():
    with pytest.raises(TypeError, match="There is no `xyz`") as error:
        Recipe.from_dict({"xyz": 1})
    assert "Did you mean" not in str(error.value) and "Expected `epochs`, `batch_size`, " in str(error.value)


COUNTS = {"epochs": 1, "batch_size": 1, "repeats": 1, "accumulate": 1, "warmup_epochs": 0, "group_size": 2}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_integers(name):
    least = COUNTS[name]
    for value in (least - 1, -7):
        with fails(ValueError, f"`{name}` is {value}", f"expected an integer of at least {least}"):
            replace(PAPER, **{name: value})
    for value in (2.0, "2", True, [2]):
        with fails(TypeError, f"`{name}` is {value!r}", f"expected an integer of at least {least}"):
            replace(PAPER, **{name: value})


# Smallest and largest value, and whether `None` is accepted.
NUMBERS: dict[str, tuple[float, float, bool]] = {
    "flip_probability": (0, 1, False),
    "rand_augment": (0, 10, False),
    "max_shift": (0, math.inf, False),
    "max_rotation": (0, 180, False),
    "max_scale": (0, 0.99, False),
    "erase_probability": (0, 1, False),
    "mixup": (0, math.inf, False),
    "cutmix": (0, math.inf, False),
    "mix_probability": (0, 1, False),
    "switch_probability": (0, 1, False),
    "label_smoothing": (0, 0.99, False),
    "alpha": (0, 1, False),
    "temperature": (0.001, math.inf, False),
    "drop_path": (0, 0.99, True),
    "learning_rate": (0, math.inf, False),
    "warmup_learning_rate": (0, math.inf, False),
    "min_learning_rate": (0, math.inf, False),
    "weight_decay": (0, math.inf, False),
    "eps": (0, math.inf, False),
    "clipping": (1e-6, math.inf, True),
    "ema_decay": (0, 1, True),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_in_their_range(name):
    low, high, optional = NUMBERS[name]
    # With soft distillation, every temperature is accepted.
    base = replace(PAPER, distillation="soft")
    wrong = [low - 1e-4, math.nan, -math.inf, True, "0.5", [0.5], *([] if high == math.inf else [high + 1e-4])]
    for value in wrong:
        with fails(ValueError, f"`{name}` is {value!r}", "expected a number from"):
            replace(base, **{name: value})
    for value in (low, 1 if high == math.inf else high):
        changed = replace(base, **{name: value})
        assert getattr(changed, name) == value and isinstance(getattr(changed, name), float)
        assert through_json(changed) == changed
    if optional:
        assert getattr(replace(base, **{name: None}), name) is None
    else:
        with fails(ValueError, f"`{name}` is None", "expected a number from"):
            replace(base, **{name: None})


@pytest.mark.parametrize("name", [name for name, (_, high, _) in NUMBERS.items() if high == math.inf])
def test_numbers_are_finite(name):
    # JSON has no inf or NaN.
    with fails(ValueError, f"`{name}` is inf"):
        replace(PAPER, distillation="soft", **{name: math.inf})


def test_all_numbers_are_tried():
    others = {
        "crop_scale",
        "distillation",
        "trained",
        "freeze_norms",
        "by_epoch",
        "late",
        "layer_decay",
        "dtype",
        "remat",
    }
    assert NUMBERS.keys() | COUNTS.keys() | others == set(FIELDS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("convert", (np.int64, np.int32, jnp.asarray), ids=("int64", "int32", "jax"))
@pytest.mark.parametrize("name", ("epochs", "group_size"))
def test_integers_of_numpy_and_jax_are_integers(name, convert):
    recipe = replace(PAPER, **{name: convert(64)})
    assert type(getattr(recipe, name)) is int
    assert through_json(recipe) == recipe and hash(through_json(recipe)) == hash(recipe)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("convert", (np.float64, np.float32))
def test_numbers_of_numpy_are_numbers(convert):
    recipe = replace(PAPER, mixup=convert(0.5))
    assert type(recipe.mixup) is float and recipe.mixup == 0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "value",
    ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (0.5,), (0.1, 0.2, 0.3), 0.5, "half", (None, 1), (math.nan, 1)),
    ids=str,
)
def test_crops_are_two_shares_in_order(value):
    with fails(ValueError, f"`crop_scale` is {value!r}", "0 < smallest <= largest <= 1, or None"):
        replace(PAPER, crop_scale=value)


@pytest.mark.usefixtures("unchecked")
def test_crops_may_be_a_list_or_none():
    assert replace(PAPER, crop_scale=[0.08, 1]) == PAPER
    assert replace(PAPER, crop_scale=None).crop_scale is None


CHOICES = {
    "distillation": ("sofd", "'soft'"),
    "trained": ("heads", "'head'"),
    "dtype": ("bfloat", "'bfloat16'"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    value, near = CHOICES[name]
    with fails(ValueError, f"`{name}` is '{value}'", "expected one of", "Did you mean", near):
        replace(PAPER, **{name: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ("freeze_norms", "by_epoch", "late", "remat"))
@pytest.mark.parametrize("value", (1, "yes", None))
def test_flags(name, value):
    with fails(TypeError, f"`{name}` is {value!r}", "True or False"):
        replace(PAPER, **{name: value})


CONTRADICTIONS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("paper", {"epochs": 5}, ["`warmup_epochs` is 5 of 5 `epochs`", "the warm-up would take the whole training"]),
    ("paper", {"warmup_epochs": 1001}, ["`warmup_epochs` is 1001 of 1000 `epochs`"]),
    ("paper", {"by_epoch": False}, ["`late` is True and `by_epoch` False"]),
    ("probe", {"distillation": "hard"}, ["`trained` is 'head' and `distillation` 'hard'", "no teacher"]),
    ("probe", {"freeze_norms": False}, ["`trained` is 'head' and `freeze_norms` False", "running statistics"]),
    ("finetune", {"alpha": 0.3}, ["`alpha` and `temperature` belong to distillation", "'none'"]),
    ("finetune", {"temperature": 3.0}, ["`alpha` and `temperature` belong to distillation", "'none'"]),
    ("paper", {"temperature": 3.0}, ["`temperature` is 3.0 and `distillation` 'hard'"]),
    (
        "paper",
        {"mixup": 0.0, "cutmix": 0.0, "mix_probability": 0.5},
        ["`mix_probability` is 0.5", "nothing to mix", "at 1"],
    ),
    ("finetune", {"mix_probability": 0.5}, ["`mix_probability` is 0.5", "nothing to mix", "at 1"]),
    ("paper", {"mixup": 0.0, "switch_probability": 0.3}, ["`switch_probability` is 0.3", "switch between", "at 0.5"]),
    ("paper", {"cutmix": 0.0, "switch_probability": 0.3}, ["`switch_probability` is 0.3", "switch between", "at 0.5"]),
    ("paper", {"mix_probability": 0.0, "switch_probability": 1.0}, ["`switch_probability` is 1.0", "switch between"]),
    ("paper", {"accumulate": 3}, ["`accumulate` is 3", "does not divide a `batch_size` of 2048"]),
    ("paper", {"group_size": 300}, ["`group_size` is 300", "does not divide the 2048 images"]),
    ("paper", {"accumulate": 16}, ["`group_size` is 256", "does not divide the 128 images"]),
]


@pytest.mark.parametrize(
    ("name", "changes", "fragments"), CONTRADICTIONS, ids=[str(case[1]) for case in CONTRADICTIONS]
)
def test_contradictions(name, changes, fragments):
    with fails(ValueError, *fragments):
        replace(RECIPES[name], **changes)


@pytest.mark.parametrize("changes", [{"mixup": 0.0}, {"mixup": 0.0, "cutmix": 0.0}, {"mix_probability": 0.0}], ids=str)
def test_mixing_is_switched_off_by_any_of_its_numbers(changes):
    replace(PAPER, **changes)


@pytest.mark.parametrize("steps", (0, -1))
def test_an_epoch_has_steps(steps):
    with fails(ValueError, f"`steps_per_epoch` is {steps}", "integer of at least 1"):
        PAPER.schedule(steps)
