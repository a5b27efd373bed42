"""Checks README and docs: pasted code runs, quotations match the source, and every public name has an entry."""

import functools
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

import levitax


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = ROOT / "docs" / "pages"
MODULES = (
    "levitax", "levitax.nn", "levitax.weights", "levitax.train", "levitax.data", "levitax.export", "levitax.plot",
)  # fmt: skip

pages = pytest.mark.parametrize(
    "page", [README, *sorted(PAGES.rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)


def code_of(page: Path) -> str:
    """Returns the code of a page, without code that needs the network and without quotations titled by a file name."""
    offline = re.sub(r"<!-- needs the network -->\n```python\n.*?```", "", page.read_text(), flags=re.DOTALL)
    return "\n".join(re.findall(r"```python\n(.*?)```", offline, re.DOTALL))


@pytest.mark.slow
@pytest.mark.usefixtures("scripts_share_compilations")
@pages
def test_the_code_runs_and_prints_the_output_on_the_page(page, tmp_path, request):
    if page.name == "from_an_install.md":
        pytest.skip("tests/cli/test_transcript.py runs its code between its commands")
    code = code_of(page)
    if not code:
        pytest.skip("a page without code")
    if "runs/digits" in code:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "digits").symlink_to(request.getfixturevalue("trained")[0])
        Image.new("L", (40, 40)).save(tmp_path / "digit.png")
    # With jax 0.12 on CPU, one in 40 processes crashed that ended during a computation.
    code += "\nimport jax\njax.block_until_ready(jax.live_arrays())"
    # The docs say to import openvino before JAX.
    code = "import openvino\n" * ("openvino" in code) + code
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # The page need not show all output: other libraries print their progress.
    printed = result.stdout
    for shown in re.findall(r"```text\n(.*?)```", page.read_text(), re.DOTALL):
        assert shown in printed
        printed = printed.split(shown, 1)[1]
    # Warnings of JAX, Equinox and levitax. Others are allowed, because nncf forks.
    assert "UserWarning" not in result.stderr, result.stderr


@functools.cache
def options_of(program: str) -> set[str]:
    """The options of a script, or of a part of the command `levitax`."""
    command = [program] if program.endswith(".py") else ["-m", *program.split()]
    help = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][\w-]*", help.stdout))


@pytest.mark.slow
def test_commands_have_the_options_that_the_pages_use():
    pytest.importorskip("tensorboardX", reason="needs the extra `examples`")
    checked = 0
    for page in [README, *PAGES.rglob("*.md")]:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for program, arguments in re.findall(r"(examples/[\w/]+\.py|levitax [a-z]+)([^#&]*)", line):
                    used = set(re.findall(r" (--[a-z][\w-]*)", arguments))
                    assert not used or used <= options_of(program), f"{page}: {line}"
                    checked += 1
    assert checked > 30


@pages
def test_no_code_goes_unchecked(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    for opening, closing in zip(fences[::2], fences[1::2], strict=True):
        assert re.fullmatch(r'python|python title="\S+"|bash|text|bibtex', opening) and not closing
    indented = re.sub(r"```.*?```|^\[\^.*?(?=^\S)", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "\n\n    " not in indented


@pages
def test_lines_of_the_source_are_quoted_as_they_are(page):
    for name, quoted in re.findall(r'```python title="(.*?)"\n(.*?)```', page.read_text(), re.DOTALL):
        source, lines = (ROOT / name).read_text().splitlines(), quoted.splitlines()
        windows = ["\n".join(source[start : start + len(lines)]) for start in range(len(source))]
        assert "\n".join(lines) in map(textwrap.dedent, windows), f"not in {name}:\n{quoted}"


@pages
def test_files_and_tests_that_are_named_exist(page):
    text = page.read_text()
    # Links that work on the site only and show brackets in the raw page.
    assert not re.findall(r"\]\[\]", text)
    for link in re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for name in re.findall(r"\bexamples/[\w/]+\.py\b", text):
        assert (ROOT / name).exists(), name
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_each_feature_leads_to_its_tests():
    text = (PAGES / "comparison.md").read_text()
    tables, footnotes = text.split("\n[^", 1)
    cited = set(re.findall(r"\[\^([\w-]+)\]", tables))
    described = dict(re.findall(r"^\[\^([\w-]+)\]: (.*(?:\n    .*)*)", "[^" + footnotes, re.MULTILINE))
    assert cited == set(described) and len(cited) > 20
    assert all("::" in tests for tests in described.values())


def test_the_image_of_the_architecture_has_the_sizes_of_the_model():
    image = (PAGES / "architecture.svg").read_text()
    config = levitax.LeViTConfig()
    for stage, (dim, heads) in enumerate(zip(config.dim, config.heads, strict=True)):
        rows, columns = config.grid(stage)
        assert f">{rows}x{columns} tokens of {dim}<" in image and f">{heads} heads<" in image


def public_names(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    return {name for name in dir(loaded) if not name.startswith("_") and not inspect.ismodule(getattr(loaded, name))}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_its_page(module):
    page = PAGES / "api" / f"{module.removeprefix('levitax.')}.md"
    described = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", page.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(public_names(module))
