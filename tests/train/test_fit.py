"""A whole training run, in this process. `tests/cli/test_runs.py` kills and moves runs of the command."""

import dataclasses
import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import levitax
from levitax import train
from levitax.data import Arrays, DataSet, Preprocessing, Subset
from levitax.train import evaluate_split, predict_split, RECIPES, TeacherLogits


pytestmark = pytest.mark.usefixtures("unchecked")

# Models come from fixtures without types.
fit: Any = train.fit
load_teacher: Any = train.load_teacher

NAMES = ("dark", "light")
RECIPE = dataclasses.replace(RECIPES["digits"], epochs=2, warmup_epochs=1, batch_size=8, learning_rate=0.3)


def split_of(images: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    labels = np.arange(images, dtype=np.int32) % 2
    light = (127 * labels).astype(np.uint8)[:, None, None, None]
    return Arrays(rng.integers(0, 128, (images, 16, 16, 3), np.uint8) + light, labels)


TRAIN, VALIDATION = split_of(24, 0), split_of(6, 1)
DATA = DataSet(TRAIN, VALIDATION, Preprocessing(image_size=16, crop_ratio=1.0, class_names=NAMES))


@pytest.fixture
def model(make):
    return make(num_classes=2, distillation=False)


@pytest.mark.slow
def test_a_run_leaves_metrics_weights_and_a_model(model, tmp_path, capsys):
    seen = []
    fitted = fit(*model, DATA, RECIPE, out=tmp_path, on_epoch=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == fitted.history == seen and [line["epoch"] for line in lines] == [1, 2]
    for name in ("model", "best", "ema"):
        levitax.load(tmp_path / f"{name}.safetensors")
        assert f"validation accuracy of {tmp_path / name}.safetensors" in capsys.readouterr().out or name != "model"
    assert levitax.load_preprocessing(tmp_path / "model.safetensors") == DATA.preprocessing
    loaded = levitax.load(tmp_path / "model.safetensors")
    accuracies = [
        evaluate_split(levitax.fuse(*each), DATA.validation, DATA.preprocessing).accuracy
        for each in (loaded, (fitted.model, fitted.state))
    ]
    assert accuracies == [lines[-1]["validation_accuracy"]] * 2
    # Again, it has nothing left to do and leaves the same.
    before = load_file(tmp_path / "model.safetensors")
    again = fit(*model, DATA, RECIPE, out=tmp_path)
    assert again.history == fitted.history
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert f"the run in `{tmp_path}` has ended; to go on" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"belong to another run: .*`data.labels`"):
        other = DATA._replace(train=TRAIN._replace(labels=1 - TRAIN.labels))
        fit(*model, other, RECIPE, out=tmp_path)


@pytest.mark.slow
def test_a_run_that_has_ended_goes_on_with_more_epochs(model, tmp_path, capsys):
    fit(*model, DATA, RECIPE, out=tmp_path)
    short = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    longer = dataclasses.replace(RECIPE, epochs=4)
    first, last = (np.asarray(longer.schedule(3)(step)).item() for step in (6, 11))
    fitted = fit(*model, DATA, longer, out=tmp_path)
    assert [line["epoch"] for line in fitted.history] == [1, 2, 3, 4] and fitted.history[:2] == short
    assert fitted.history[-1]["learning_rate"] == pytest.approx(last)
    rates = f"{first:.2g}, after {short[-1]['learning_rate']:.2g} at its end"
    assert re.search(rf"ended after 2 epoch\(s\), and goes on to 4, .*: {rates}", capsys.readouterr().out)
    # It is that run now, and neither becomes shorter nor changes otherwise.
    with pytest.raises(ValueError, match=r"at step 12 of 4 epochs, 1 of them warm-up, and the recipe has 2 and 1"):
        fit(*model, DATA, RECIPE, out=tmp_path)
    with pytest.raises(ValueError, match=r"belong to another run: .*`recipe.mixup` was 0.0 and is 0.5"):
        fit(*model, DATA, dataclasses.replace(longer, epochs=5, mixup=0.5), out=tmp_path)


@pytest.mark.slow
def test_a_run_that_has_not_ended_keeps_its_length(model, tmp_path):
    def stop(metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(*model, DATA, RECIPE, out=tmp_path, on_epoch=stop, checkpoint_every=1)
    with pytest.raises(ValueError, match="Only a run that has ended can go on, with more epochs"):
        fit(*model, DATA, dataclasses.replace(RECIPE, epochs=4), out=tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(model, tmp_path):
    # The first step is good. After it the weights are so large that the next gradient is not finite.
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup_learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"loss of step 2 is .* last good checkpoint is `.*/1`"):
        fit(*model, DATA, recipe, out=tmp_path, checkpoint_every=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["1"]


@pytest.mark.slow
def test_live_and_stored_teachers(make, model, tmp_path):
    levitax.save(tmp_path / "teacher.safetensors", *model, preprocessing=DATA.preprocessing)
    live = load_teacher(tmp_path / "teacher.safetensors", DATA.preprocessing)
    stored = TeacherLogits.compute(levitax.fuse(*model), DATA)
    recipe = dataclasses.replace(RECIPE, epochs=1, warmup_epochs=0, distillation="soft", alpha=1.0)
    student = make(num_classes=2)
    losses = {
        name: fit(*student, DATA, recipe, out=tmp_path / name, teacher=teacher).history[0]["train_loss"]
        for name, teacher in (("live", live), ("stored", stored))
    }
    # Stored logits are of images before they are shifted, rotated and scaled.
    assert losses["live"] != losses["stored"]
    with pytest.raises(ValueError, match="for other training images"):
        fit(*student, DATA._replace(train=split_of(24, 2)._replace(labels=1 - TRAIN.labels)), recipe,
            out=tmp_path / "other", teacher=stored)  # fmt: skip


@pytest.mark.slow
def test_a_teacher_with_other_normalisation_sees_the_same_pixels(make, model, tmp_path):
    other = dataclasses.replace(DATA.preprocessing, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    levitax.save(tmp_path / "teacher.safetensors", *model, preprocessing=other)
    teacher = load_teacher(tmp_path / "teacher.safetensors", DATA.preprocessing)
    pixels = TRAIN.images[:4]
    expected = jnp.stack([levitax.fuse(*model)(jnp.asarray(image)) for image in other.normalise(pixels)])
    np.testing.assert_allclose(teacher(DATA.preprocessing.normalise(pixels)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_teacher_of_another_class_order_is_reordered(model, tmp_path):
    levitax.save(tmp_path / "teacher.safetensors", *model, preprocessing=DATA.preprocessing)
    images = DATA.preprocessing.normalise(TRAIN.images[:4])
    student = dataclasses.replace(DATA.preprocessing, class_names=NAMES[::-1])
    one, other = (
        load_teacher(tmp_path / "teacher.safetensors", each)(images) for each in (DATA.preprocessing, student)
    )
    np.testing.assert_array_equal(one, np.asarray(other)[:, ::-1])
    with pytest.raises(ValueError, match="different classes"):
        load_teacher(tmp_path / "teacher.safetensors", dataclasses.replace(student, class_names=("a", "b")))
    levitax.save(tmp_path / "nameless.safetensors", *model, preprocessing=dataclasses.replace(student, class_names=()))
    with pytest.warns(UserWarning, match="no class names"):
        load_teacher(tmp_path / "nameless.safetensors", student)


def test_arguments_that_do_not_fit_together(make, model, tmp_path):
    soft = dataclasses.replace(RECIPE, distillation="soft")
    of_one_class = DATA._replace(preprocessing=dataclasses.replace(DATA.preprocessing, class_names=("dark",)))
    unvalidated = DATA._replace(validation=Subset(VALIDATION, np.arange(0)))
    for arguments, keywords, message in (
        ((*model, DATA, soft), {}, "`distillation` 'soft', and there is no teacher"),
        ((*model, DATA, RECIPE), {"teacher": lambda images: images}, "`distillation` 'none', and there is a teacher"),
        ((*make(), DATA, RECIPE), {}, "for 5 classes and 3 channels, and `data` has 2 and 3"),
        ((*model, DATA, dataclasses.replace(RECIPE, batch_size=32)), {}, "only 24 images"),
        ((*model, DATA, RECIPE), {"checkpoint_every": 0}, "`checkpoint_every` is 0"),
        ((*model, DATA, dataclasses.replace(RECIPE, dtype="bfloat16")), {}, "`dtype` 'bfloat16', and `model` has 'fl"),
        ((*model, DATA, dataclasses.replace(RECIPE, drop_path=0.1)), {}, "`drop_path` 0.1, and `model` has 0.0"),
        ((*model, DATA, RECIPE), {"out": __file__}, "is a file"),
        ((*model, of_one_class, RECIPE), {}, r"`data` has the classes \['dark'\]; a classifier needs at least two"),
        ((*model, unvalidated, RECIPE), {}, "`data` has no validation images"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            fit(*arguments, **{"out": tmp_path / "run", **keywords})
    assert not (tmp_path / "run").exists()


def test_a_split_is_predicted_as_its_images(model):
    predict = levitax.fuse(*model)
    (batch, logits), = predict_split(predict, DATA.validation, DATA.preprocessing)  # fmt: skip
    assert batch.weights.sum() == 6
    for index, row in zip(batch.indices[:6], logits, strict=False):
        image = DATA.preprocessing.normalise(VALIDATION.images[index])
        np.testing.assert_allclose(row, predict(jnp.asarray(image)), rtol=1e-4, atol=1e-5)
