"""README and docs: the Python runs as a user pastes it, and every public name is described."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = ROOT / "docs" / "pages"
MODULES = ("levitax", "levitax.nn", "levitax.weights", "levitax.train", "levitax.data", "levitax.export")


def code_of(page: Path) -> str:
    """All of a page, but what needs the network and lines that are quoted from the source, under their file's name."""
    offline = re.sub(r"<!-- needs the network -->\n```python\n.*?```", "", page.read_text(), flags=re.DOTALL)
    return "\n".join(re.findall(r"```python\n(.*?)```", offline, re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, *(page for page in sorted(PAGES.glob("*.md")) if code_of(page))], ids=str)
def test_the_code_runs_and_prints_what_is_told(page, tmp_path):
    # As a user would who knows to import it before JAX.
    code = "import openvino\n" * ("openvino" in code_of(page)) + code_of(page)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = re.findall(r"```text\n(.*?)```", page.read_text(), re.DOTALL)
    assert result.stdout == "".join(told)


def test_lines_of_the_source_are_quoted_as_they_are():
    quoted = re.findall(r'```python title="(.*?)"\n(.*?)```', (PAGES / "architecture.md").read_text(), re.DOTALL)
    assert len(quoted) > 5
    for name, lines in quoted:
        source = [line.strip() for line in (ROOT / "src" / name).read_text().splitlines()]
        for line in lines.splitlines():
            assert line.strip() in source, f"{name}: {line}"


def public_names(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    return {name for name in dir(loaded) if not name.startswith("_") and not inspect.ismodule(getattr(loaded, name))}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_its_page(module):
    page = PAGES / "api" / f"{module.removeprefix('levitax.')}.md"
    described = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", page.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(public_names(module))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_and_class_has_a_docstring(module):
    loaded = importlib.import_module(module)
    for name in public_names(module):
        value = getattr(loaded, name)
        if inspect.isfunction(value) or (inspect.isclass(value) and value.__module__.startswith("levitax")):
            assert inspect.getdoc(value), f"{module}.{name}"
