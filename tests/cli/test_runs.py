"""Training runs that are repeated, killed, spoilt and moved: the command on a few small images."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import levitax
from levitax.data import Preprocessing
from levitax.train import TeacherLogits


pytest.importorskip("tensorboardX", reason="needs the extra `cli`")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("scripts_share_compilations")]

IMAGES, BATCH = 48, 16
PREPROCESSING = Preprocessing(image_size=16, crop_ratio=1.0)
RECIPE = {"--preset": "digits", "--batch-size": BATCH, "--epochs": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two classes, dark and light."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for part, number in (("train", IMAGES), ("val", 20)):
        for index in range(number):
            kind = folder / part / ("dark", "light")[index % 2]
            kind.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (32, 40, 3), np.uint8) + np.uint8(127 * (index % 2))
            Image.fromarray(pixels).save(kind / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def begin(folder, once):
    """Starts a command on the images."""
    cache = once("datasets", lambda folder: None)

    def begin(command: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
        data = () if "--data" in arguments else ("--data", folder)
        line = [sys.executable, "-m", "levitax", command, *data, *arguments]
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "HF_HOME": str(cache),
        }
        return subprocess.Popen(
            list(map(str, line)),
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    return begin


@pytest.fixture(scope="module")
def train(begin, once, make):
    """Starts training into a folder, from a model that compiles faster than those that `levitax train` can make."""
    small = make(num_classes=2, distillation=False)
    save = lambda folder: levitax.save(folder / "model.safetensors", *small, preprocessing=PREPROCESSING)
    weights = once("small", save) / "model.safetensors"

    def train(out: Path, *arguments: object, devices: int = 1) -> subprocess.Popen:
        recipe = [part for flag, value in RECIPE.items() if flag not in arguments for part in (flag, value)]
        return begin("finetune", "--weights", weights, *recipe, "--out", out, *arguments, devices=devices)

    return train


@pytest.fixture
def start(train, tmp_path):
    """Starts training into a folder of this name."""

    def start(name: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
        return train(tmp_path / name, *arguments, devices=devices)

    return start


@pytest.fixture
def finish(start):
    """Trains into a folder of this name, to the end."""

    def finish(name: str, *arguments: object, devices: int = 1, code: int = 0) -> str:
        return ended(start(name, *arguments, devices=devices), code)

    return finish


@pytest.fixture(scope="module")
def undisturbed(train, once) -> Path:
    """The run folder of a run without interruptions. To be copied, not written to."""
    return once("undisturbed", lambda folder: ended(train(folder)))


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """What it printed until its end."""
    output, _ = process.communicate()
    assert process.returncode == code, output
    return output


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "waiting")} for line in lines]


def assert_same(folder: Path, other: Path) -> None:
    """Bit for bit."""
    assert metrics(folder) == metrics(other)
    for name in ("model.safetensors", "best.safetensors", "ema.safetensors"):
        # Not the files, whose headers name the same things in an order of their own each time.
        arrays, others = load_file(folder / name), load_file(other / name)
        assert arrays.keys() == others.keys()
        assert all(arrays[path].tobytes() == others[path].tobytes() for path in arrays)


def wait_for(process: subprocess.Popen, happened) -> None:
    while not happened() and process.poll() is None:
        time.sleep(0.002)


def test_the_same_seed_gives_the_same_numbers(finish, undisturbed, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        finish(name, "--seed", seed)
    assert_same(tmp_path / "again", undisturbed)
    assert metrics(tmp_path / "other") != metrics(undisturbed)


@pytest.mark.parametrize("workers", (0, 2))
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(
    workers, start, finish, undisturbed, tmp_path
):
    draw = random.Random(workers)
    checkpoints = tmp_path / "killed" / "checkpoints"
    kills = 0
    while kills < 3:
        process = start("killed", "--workers", workers, "--checkpoint-every", 1)
        before = set(checkpoints.glob("*"))
        # From the first thing that is written anew: within a save, or some steps on.
        wait_for(process, lambda before=before: set(checkpoints.glob("*")) - before)
        time.sleep(draw.choice((0.0, 0.05, 0.2, 0.6)) * draw.random())
        kills += process.poll() is None
        process.kill()
        # Workers that did not end with it would keep its output open.
        process.communicate(timeout=60)
        if (tmp_path / "killed" / "model.safetensors").exists():
            pytest.fail(f"The run had ended after {kills} kills.")
    finish("killed", "--checkpoint-every", 1)
    assert_same(tmp_path / "killed", undisturbed)


def test_sigterm_saves_before_leaving(start, finish, undisturbed, tmp_path):
    process = start("stopped", "--workers", 2)
    wait_for(process, lambda: any((tmp_path / "stopped" / "checkpoints").glob("3*")))
    # To the workers as well, as clusters do.
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    step, checkpoint = re.findall(r"stopped after step (\d+); repeat the call to resume from `(.*)`", output)[0]
    assert Path(checkpoint).is_dir() and Path(checkpoint).name == step
    assert "continuing after" in finish("stopped")
    assert_same(tmp_path / "stopped", undisturbed)


def test_two_runs_at_once_into_one_folder_are_refused(start, finish, undisturbed, tmp_path):
    process = start("run")
    wait_for(process, lambda: (tmp_path / "run" / "checkpoints").exists())
    printed = finish("run", code=1)
    assert f"Another run writes to `{tmp_path / 'run'}`" in printed and "Traceback" not in printed
    # The other one is none the worse for it.
    ended(process)
    assert_same(tmp_path / "run", undisturbed)


def test_a_corrupt_image_is_one_line(finish, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "train" / "dark" / "00.png").write_bytes(b"no image")
    printed = finish("run", "--data", tmp_path / "images")
    pattern = r"^levitax finetune: `.*00.png` cannot be read as an image: .*. Skipped; 1 so far.$"
    assert re.search(pattern, printed, re.MULTILINE)
    assert "Warning" not in printed


def test_ctrl_c_ends_a_run_in_a_line(start, tmp_path):
    process = start("run", "--epochs", 1000)
    wait_for(process, lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    printed = ended(process, 128 + signal.SIGINT)
    assert "repeat the call to resume from the newest checkpoint" in printed and "Traceback" not in printed


def spoil_truncate(checkpoint: Path) -> None:
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.parametrize("spoil", (spoil_truncate, shutil.rmtree), ids=("truncated", "deleted"))
def test_a_spoilt_checkpoint_costs_no_more_than_what_came_after_the_one_before(spoil, finish, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "spoilt")
    checkpoints = tmp_path / "spoilt" / "checkpoints"
    newest = max(int(path.name) for path in checkpoints.iterdir())
    spoil(checkpoints / str(newest))
    output = finish("spoilt")
    assert "continuing after epoch 5 of the newest checkpoint; 6 epochs were logged" in output
    assert ("corrupt" in output) == (spoil is spoil_truncate)
    assert_same(tmp_path / "spoilt", undisturbed)


def test_one_device_eight_and_two_processes_of_four_train_alike(start, finish, tmp_path):
    # One step per epoch, so that `metrics.jsonl` has the loss of each step.
    steps = ("--batch-size", IMAGES, "--epochs", 3)
    finish("one", *steps)
    pair(start, "pair", *steps)
    # The last two epochs again, on eight devices of one process, from a checkpoint of the two processes.
    shutil.copytree(tmp_path / "pair", tmp_path / "eight")
    for epoch in ("2", "3"):
        shutil.rmtree(tmp_path / "eight" / "checkpoints" / epoch)
    assert "continuing after epoch 1 " in finish("eight", *steps, devices=8)
    losses = lambda name: [line["train_loss"] for line in metrics(tmp_path / name)]
    checkpoints = lambda name: {path.name for path in (tmp_path / name / "checkpoints").iterdir()}
    for name in ("pair", "eight"):
        assert len(losses(name)) == 3
        np.testing.assert_allclose(losses(name), losses("one"), rtol=1e-5)
        assert checkpoints(name) == checkpoints("one")


def pair(start, name: str, *arguments: object) -> None:
    """Trains in two processes of four devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ("--coordinator", f"localhost:{port}", "--processes", 2)
    processes = [start(name, *arguments, *common, "--process", number, devices=4) for number in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def test_stored_logits_teach(begin, finish, undisturbed, tmp_path):
    weights = ("--weights", undisturbed / "model.safetensors")
    stored = tmp_path / "logits.safetensors"
    ended(begin("evaluate", *weights, "--crop-ratio", 1, "--logits", stored))
    logits = TeacherLogits.load(stored).logits
    assert (logits.argmax(-1) == np.repeat([0, 1], IMAGES // 2)).all() and logits.shape == (IMAGES, 2)
    finish("student", "--distillation", "soft", "--teacher", stored)
    assert len(metrics(tmp_path / "student")) == 6


def test_a_teacher_of_other_classes_is_refused(make, finish, tmp_path):
    levitax.save(tmp_path / "five.safetensors", *make(), preprocessing=PREPROCESSING)
    printed = finish("run", "--distillation", "hard", "--teacher", tmp_path / "five.safetensors", code=1)
    assert "The teacher must see the same images and have the same classes" in printed and "Traceback" not in printed


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_checkpoint(finish, tmp_path):
    printed = finish("run", "--checkpoint-every", 1, "--learning-rate", 1e30, "--warmup-learning-rate", 1e-5, code=1)
    step, folder = re.findall(r"The loss of step (\d+) is .* last good checkpoint is `([^`]*)`", printed)[0]
    assert Path(folder).is_dir() and int(Path(folder).name) == int(step) - 1
