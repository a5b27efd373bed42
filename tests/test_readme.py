"""The Python of README and docs, run as a user pastes it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.mark.slow
def test_the_code_runs_and_prints_what_is_told(tmp_path):
    text = README.read_text()
    printed = re.search(r"```python\n.*?```\s+```text\n(.*?)```", text, re.DOTALL)
    assert printed is not None
    offline = re.sub(r"<!-- needs the network -->\n```python\n.*?```", "", text, flags=re.DOTALL)
    code = "\n".join(re.findall(r"```python\n(.*?)```", offline, re.DOTALL))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["serving"])
def test_the_code_of_a_page_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    # As a user would who knows to import it before JAX.
    code = "\n".join(["import openvino", *blocks])
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
