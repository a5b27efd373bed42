"""Checks that the scripts of the research guides print the lines on their pages and find the same effects."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("tqdm", reason="needs the extra `examples`")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS, PAGES = ROOT / "examples" / "research", ROOT / "docs" / "pages" / "research"


@pytest.fixture(autouse=True)
def optimised(scripts_share_compilations, monkeypatch) -> None:
    """Compiles with all optimisations, which these scripts run long enough to be worth."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")


@pytest.fixture
def weights(trained) -> Path:
    return trained[0] / "model.safetensors"


def run(script: str, *arguments: object, folder: Path | None = None) -> str:
    """Runs the script in `folder` and returns its output, whose lines must be those on its page except for numbers."""
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
    page = (PAGES / f"{script}.md").read_text()
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert set(lines(result.stdout)) == set(lines(shown))
    return result.stdout


def lines(text: str) -> list[str]:
    """Splits the text into lines, with one # for each number or list of numbers."""
    number = r"\d+(?:[.,]\d+)*(?:e-\d+)?%?"
    return re.sub(f"{number}(?:, {number})*", "#", text).splitlines()


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_an_ensemble_is_better_than_its_members():
    printed = run("ensemble", "--members", 2, "--steps", 60)
    *alone, together = percentages(printed)
    assert len(alone) == 2 and min(alone) > 50 and together > max(alone)


def test_per_example_gradients(weights):
    printed = run("per_example_gradients", "--weights", weights)
    assert "norms of 4000 gradients" in printed
    median, largest = map(float, re.findall(r"median ([\d.]+), largest ([\d.]+)", printed)[0])
    assert 0 < median < largest
    signal, noise = map(float, re.findall(r"gradient: ([\d.]+), of the noise of one example: ([\d.]+)", printed)[0])
    assert noise > signal > 0


def test_power_iteration_converges(weights):
    found = re.findall(r": ([\d.]+) \(residual ([\d.]+)\)", run("curvature", "--weights", weights))
    eigenvalues, residuals = zip(*[map(float, pair) for pair in found], strict=True)
    assert residuals[-1] < 0.05 * eigenvalues[-1] and residuals[-1] < residuals[0]


def test_frozen_parts_need_not_change_to_learn_another_task(weights):
    printed = run("surgery", "--weights", weights, "--steps", 30)
    count = re.compile(r"([\d,]+) parameters")
    counts = count.findall(printed)
    assert len(set(counts)) == 3 and counts == count.findall((PAGES / "surgery.md").read_text())
    head, stage, all_, *_ = percentages(printed)
    assert min(head, stage, all_) > 85


def test_lora_learns_more_than_the_head_and_merges(weights, tmp_path):
    printed = run("lora", "--weights", weights, "--steps", 30, "--out", tmp_path / "lora.onnx")
    before, head, lora, _ = percentages(printed)
    assert before < head < lora
    assert all(float(number) < 1e-4 for number in re.findall(r"difference .*: (\S+)", printed))


def test_parts_of_ones_own_train_fuse_and_export(tmp_path):
    printed = run("own_parts", folder=tmp_path)
    first, last = map(float, re.findall(r"loss ([\d.]+) at the first step, ([\d.]+) at", printed)[0])
    assert last < first - 0.5 and percentages(printed)[0] > 30
    assert float(re.findall(r"ONNX Runtime: (\S+)", printed)[0]) < 1e-4


def test_a_backbone_in_a_module_learns_to_mark_pixels():
    printed = run("backbone", "--steps", 80)
    assert float(re.findall(r"unseen digits: ([\d.]+)", printed)[0]) > 0.7


def test_larger_changes_of_the_pixels_cost_more_accuracy(weights):
    right = percentages(run("typed_experiment", "--weights", weights))
    assert len(right) == 5 and right == sorted(right, reverse=True) and right[0] > 80 and right[-1] < right[0] - 30


def test_attention_is_drawn(weights, tmp_path):
    printed = run("attention", "--weights", weights, "--image", 640, "--at", 9, 14, "--out", tmp_path)
    assert len(printed.splitlines()) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "biases.png", "stage1_block1.png", "stage2_block1.png", "stage2_block2.png", "stage3_block1.png",
        "stage3_block2.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "stage3_block1.png") as figure:
        assert figure.width > 5 * figure.height
