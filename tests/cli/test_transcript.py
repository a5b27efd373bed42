"""The commands of the guide "From an install", in an empty folder, and what they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("tensorboardX", reason="needs the extra `cli`")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("scripts_share_compilations")]
ROOT = Path(__file__).parents[2]


def masked(line: str) -> str:
    """A line without its numbers and its widths."""
    return " ".join(re.sub(r"[\d.,]*\d(e[-+]\d+)?", "#", line).split())


def test_the_guide_from_an_install(tmp_path):
    page = (ROOT / "docs" / "pages" / "from_an_install.md").read_text()
    printed, commands = [], 0

    def run(*arguments: str) -> None:
        result = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        printed.extend(map(masked, result.stdout.splitlines()))

    for language, title, block in re.findall(r'```(\w+)(?: title="(.*?)")?\n(.*?)```', page, re.DOTALL):
        if title:
            run(str(ROOT / title))
        elif language == "python":
            run("-c", block)
        elif language == "bash":
            for line in block.splitlines():
                program, *arguments = line.split()
                if program == "pip":
                    continue
                # One epoch prints the same lines.
                short = ["--epochs", "1"] if arguments[0] in ("train", "finetune") else []
                run("-m", program, *arguments, *short)
                commands += 1
        else:
            for line in block.splitlines():
                assert line == "..." or masked(line) in printed, f"{line}\n{printed}"
    assert commands == 8
