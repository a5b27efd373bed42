"""Training runs that are repeated, killed, spoilt and moved: the examples on a few small pictures."""

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
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import levitax
from levitax.data import Preprocessing


pytest.importorskip("tensorboardX", reason="needs the extra `examples`")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("scripts_share_compilations")]

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES, BATCH = 48, 16
PREPROCESSING = Preprocessing(image_size=16, crop_ratio=1.0)
RECIPE = ("--preset", "digits", "--batch-size", BATCH, "--epochs", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of two classes, light on dark and dark on light."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    for part, number in (("train", PICTURES), ("val", 20)):
        for index in range(number):
            kind = folder / part / ("dark", "light")[index % 2]
            kind.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (32, 40, 3), np.uint8) + np.uint8(127 * (index % 2))
            Image.fromarray(pixels).save(kind / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def begin(folder, once):
    """Starts one of the examples on the pictures."""
    cache = once("datasets", lambda folder: None)

    def begin(script: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
        command = [sys.executable, EXAMPLES / script, "--data", folder, *arguments]
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "HF_HOME": str(cache),
        }
        return subprocess.Popen(
            list(map(str, command)),
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    return begin


@pytest.fixture(scope="module")
def train(begin, once, make):
    """Starts training into a folder, with the options of `train.py`, from a model that takes less time to compile than
    those it can make."""
    small = make(num_classes=2, distillation=False)
    save = lambda folder: levitax.save(folder / "model.safetensors", *small, preprocessing=PREPROCESSING)
    weights = once("small", save) / "model.safetensors"

    def train(out: Path, *arguments: object, devices: int = 1) -> subprocess.Popen:
        return begin("finetune.py", "--weights", weights, *RECIPE, "--out", out, *arguments, devices=devices)

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
    """What training leaves that nothing came between. To be copied, not written to."""
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
    while kills < 5:
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
    step, checkpoint = re.findall(r"stopped after step (\d+); the same command goes on from `(.*)`", output)[0]
    assert Path(checkpoint).is_dir() and Path(checkpoint).name == step
    assert "going on after" in finish("stopped")
    assert_same(tmp_path / "stopped", undisturbed)


def test_two_runs_at_once_into_one_folder_are_refused(start, finish, undisturbed, tmp_path):
    process = start("run")
    wait_for(process, lambda: (tmp_path / "run" / "checkpoints").exists())
    told = finish("run", code=2)
    assert f"Another run writes to `{tmp_path / 'run'}`" in told and "Traceback" not in told
    # The other one is none the worse for it.
    ended(process)
    assert_same(tmp_path / "run", undisturbed)


def test_a_damaged_picture_is_told_in_a_line(finish, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "dark" / "00.png").write_bytes(b"no picture")
    told = finish("run", "--data", tmp_path / "pictures")
    pattern = r"^finetune.py: `.*00.png` cannot be read as an image: .*. Skipped; 1 so far.$"
    assert re.search(pattern, told, re.MULTILINE)
    assert "Warning" not in told


def test_ctrl_c_ends_a_run_in_a_line(start, tmp_path):
    process = start("run", "--epochs", 1000)
    wait_for(process, lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    told = ended(process, 128 + signal.SIGINT)
    assert "the same command goes on from the newest checkpoint" in told and "Traceback" not in told


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
    assert "going on after epoch 5 of the newest checkpoint; metrics were told up to 6" in output
    assert ("corrupt" in output) == (spoil is spoil_truncate)
    assert_same(tmp_path / "spoilt", undisturbed)


def test_one_device_eight_and_two_processes_of_four_train_alike(start, finish, tmp_path):
    # A step an epoch, so that the losses that are written down are those of the steps.
    steps = ("--batch-size", PICTURES)
    layouts = {"one": partial(finish, devices=1), "eight": partial(finish, devices=8), "pair": partial(pair, start)}
    for name, train in layouts.items():
        train(name, *steps)
    # The last epoch again, from what another layout has saved.
    for name, other in (("one", "pair"), ("pair", "eight")):
        shutil.copytree(tmp_path / other, tmp_path / f"{name}-after")
        shutil.rmtree(tmp_path / f"{name}-after" / "checkpoints" / "6")
        assert "going on after epoch 5 " in layouts[name](f"{name}-after", *steps)
    losses = lambda name: [line["train_loss"] for line in metrics(tmp_path / name)]
    checkpoints = lambda name: {path.name for path in (tmp_path / name / "checkpoints").iterdir()}
    for name in ("eight", "pair", "one-after", "pair-after"):
        assert len(losses(name)) == 6
        np.testing.assert_allclose(losses(name), losses("one"), rtol=1e-5)
        assert checkpoints(name) == checkpoints("one")


def pair(start, name: str, *arguments: object) -> str:
    """Trains in two processes of four devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ("--coordinator", f"localhost:{port}", "--processes", 2)
    processes = [start(name, *arguments, *common, "--process", number, devices=4) for number in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs[0]


def test_a_teacher_is_asked_each_time_or_once_and_for_all(begin, finish, undisturbed, tmp_path):
    weights = ("--weights", undisturbed / "model.safetensors")
    output, _ = begin("evaluate.py", *weights, "--crop-ratio", 1, "--logits", tmp_path / "logits.npy").communicate()
    logits = np.load(tmp_path / "logits.npy")
    labels = np.repeat([0, 1], PICTURES // 2)
    assert logits.shape == (PICTURES, 2) and (logits.argmax(-1) == labels).all(), output
    # Pictures that a teacher is asked about each time are augmented; the stored logits are of those that are not.
    for name, teacher in (("asked", weights[1]), ("stored", tmp_path / "logits.npy")):
        finish(name, "--set", "distillation=soft", "--teacher", teacher)
    assert metrics(tmp_path / "asked") != metrics(tmp_path / "stored")
    for teacher, expected in ((logits[:5], r"shape \(5, 2\); expected \(48, 2\)"), (logits[:, :1], r"\(48, 1\)")):
        np.save(tmp_path / "other.npy", teacher)
        told = finish("other", "--set", "distillation=soft", "--teacher", tmp_path / "other.npy", code=2)
        assert re.search(expected, told) and "Traceback" not in told


def test_a_teacher_of_other_classes_is_refused(make, finish, tmp_path):
    levitax.save(tmp_path / "five.safetensors", *make(), preprocessing=PREPROCESSING)
    told = finish("run", "--set", "distillation=hard", "--teacher", tmp_path / "five.safetensors", code=2)
    assert "The teacher must see the same images and have the same classes" in told and "Traceback" not in told


def test_a_checkpoint_of_another_recipe_is_refused_with_the_difference(finish, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    told = finish("run", "--epochs", 8, code=2)
    assert "belong to another run: `recipe.epochs` was 6 and is 8" in told and "Traceback" not in told


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_checkpoint(finish, tmp_path):
    told = finish("run", "--checkpoint-every", 1, "--set", "learning_rate=1e30", "warmup_learning_rate=1e-5", code=1)
    step, folder = re.findall(r"The loss of step (\d+) is .* last good checkpoint is `([^`]*)`", told)[0]
    assert Path(folder).is_dir() and int(Path(folder).name) == int(step) - 1
