"""The examples, run as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("tqdm", reason="needs the extra `examples`")
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
    for name in ("model.eqx", "curves.png", "predictions.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run("train.py", "--epochs", 3, "--seed", seed, "--out", tmp_path / name)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "again")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "other")
