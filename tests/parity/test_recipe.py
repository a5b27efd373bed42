"""Compares the recipe with the outputs of timm and PyTorch, as recorded by `make_goldens.py`."""

from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import levitax
from levitax.data._rand_augment import apply
from levitax.train import (
    adamw,
    adaptive_grad_clip,
    cutmix,
    distillation_loss,
    make_step,
    mixup,
    one_hot,
    TeacherTargets,
    TrainState,
    warmup_cosine,
)

from . import cases, ours, recipe_cases, records


@pytest.fixture(scope="module")
def golden():
    return records.load("recipe")


def close(array, golden, *, limit=1e-6):
    assert np.abs(np.asarray(array) - golden).max() <= limit * np.abs(golden).max()


def test_clipping(golden):
    parameters, gradients = recipe_cases.parameters_and_gradients()
    # Tables have two more axes here; only the axis of the heads matters.
    shape = lambda name, array: array.reshape(4, 3, 3) if name == "table" else array
    parameters, gradients = (
        {name: shape(name, array) for name, array in tree.items()} for tree in (parameters, gradients)
    )
    clip = adaptive_grad_clip(recipe_cases.CLIPPING)
    clipped: Any = clip.update(gradients, clip.init(parameters), parameters)[0]
    for name, array in clipped.items():
        close(array.reshape(gradients[name].shape).ravel(), golden[f"clipped:{name}"].ravel())
    changed = [name for name in clipped if not np.array_equal(clipped[name], gradients[name])]
    assert set(changed) == clipped.keys() - {"small_gradient"}


@pytest.mark.parametrize("name", recipe_cases.SCHEDULES)
def test_schedules(golden, name):
    learning_rate, epochs = recipe_cases.SCHEDULES[name]
    schedule = partial(warmup_cosine, learning_rate, epochs=epochs, steps_per_epoch=7)
    middle = 7 * np.arange(epochs) + 3
    close(schedule(by_epoch=True)(middle), golden[f"schedule:{name}"], limit=1e-6)
    close(schedule(by_epoch=True, late=True)(middle), golden[f"schedule:{name}:official"], limit=1e-6)
    assert len(set(golden[f"schedule:{name}:official"][:2])) == 1
    # A schedule by step has the same rates at the start of each epoch.
    close(schedule()(7 * np.arange(epochs)), golden[f"schedule:{name}"], limit=1e-6)


@pytest.mark.parametrize("name", recipe_cases.MIXING)
def test_mixing(golden, name):
    share, centre = recipe_cases.MIXING[name]
    images, labels = recipe_cases.mixed()
    targets = one_hot(labels, 10)
    if centre is None:
        images, targets = mixup(jnp.asarray(images), targets, jnp.float32(share))
    else:
        images, targets = cutmix(jnp.asarray(images), targets, jnp.float32(share), jnp.array(centre))
    close(images, golden[f"mixed:{name}:images"])
    close(optax.losses.smooth_labels(targets, 0.1), golden[f"mixed:{name}:targets"])


@pytest.mark.parametrize(("kind", "alpha", "temperature"), [("hard", 0.5, 1.0), ("soft", 0.3, 3.0)])
def test_distillation(golden, kind, alpha, temperature):
    classification, distillation, teacher, labels = map(jnp.asarray, recipe_cases.distilled())
    loss = partial(distillation_loss, kind=kind, alpha=alpha, temperature=temperature)
    logits = levitax.nn.DistilledLogits(classification, distillation)
    value, gradient = eqx.filter_value_and_grad(loss)(logits, TeacherTargets(labels, teacher))
    close(value, golden[f"distilled:{kind}"])
    close(gradient.classification, golden[f"distilled:{kind}:classification"], limit=1e-5)
    close(gradient.distillation, golden[f"distilled:{kind}:distillation"], limit=1e-5)


@pytest.mark.parametrize("name", recipe_cases.OPERATIONS)
def test_operations_of_rand_augment(golden, name):
    image = Image.fromarray(recipe_cases.image())
    for strength in recipe_cases.STRENGTHS:
        result = np.asarray(apply(name, image, strength, recipe_cases.FILL)).astype(int)
        # Pillow's filters may round differently in other versions.
        assert np.abs(result - golden[f"augmented:{name}:{strength}"]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_cases.EPS)
def test_twenty_steps_of_the_whole_recipe_follow(name):
    model, state = ours.make("timm", **recipe_cases.TRAINING)
    optimizer = adamw(
        recipe_cases.LEARNING_RATE,
        weight_decay=recipe_cases.WEIGHT_DECAY,
        eps=recipe_cases.EPS[name],
        clipping=recipe_cases.CLIPPING,
    )
    train_state = TrainState(model, state, optimizer, ema_decay=recipe_cases.EMA_DECAY, key=ours.KEY)
    loss = partial(distillation_loss, label_smoothing=0.1)
    step = make_step(loss)
    losses = []
    for number in range(recipe_cases.STEPS):
        images, labels, teacher = recipe_cases.batch(number)
        train_state, metrics = step(train_state, images, TeacherTargets(jnp.asarray(labels), jnp.asarray(teacher)))
        losses.append(float(metrics.loss))
    record = {"losses": np.array(losses)}
    for kind, pair in (("final", (train_state.model, train_state.state)), ("average", train_state.averaged())):
        arrays = levitax.weights.state_dict(*pair, layout="levitax")
        record |= {f"{kind}:{path}": array for path, array in arrays.items()}
    golden = records.load(f"recipe-{name}")
    assert max(np.abs(record["losses"] - golden["losses"]) / golden["losses"]) <= cases.BACKWARD
    errors = records.errors(record, golden)
    assert len(errors) == 1 + 2 * len(arrays)
    compared = {path: error for path, error in errors.items() if name == "larger" or path.endswith(".var")}
    assert len(compared) >= 2 * 52
    worst = max(compared, key=compared.__getitem__)
    assert compared[worst] <= cases.STATISTICS, worst
