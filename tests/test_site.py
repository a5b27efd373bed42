"""Builds the site strictly, follows its links, and opens its pages in a browser."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest


pytest.importorskip("zensical", reason="needs the extra `docs`")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(once) -> Path:
    """The folder of the site, built from a copy."""

    def build(folder: Path) -> None:
        shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("site", ".cache"))
        (folder / "src").symlink_to(ROOT / "src")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "docs/mkdocs.yml"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    return once("site", build) / "docs" / "site"


class Page(HTMLParser):
    """Collects the links and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            if name == "id" and value is not None:
                self.places.add(value)


def test_every_link_inside_the_site_leads_somewhere(site):
    parsed = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(parsed) > 25
    broken, followed = [], 0
    for path, page in parsed.items():
        address = f"https://site/{path.relative_to(site).as_posix().removesuffix('index.html')}"
        for link in page.links:
            target, place = urldefrag(urljoin(address, link))
            if not target.startswith("https://site/"):
                continue
            file = site / unquote(target.removeprefix("https://site/"))
            file = file / "index.html" if file.is_dir() else file
            followed += 1
            if not file.exists() or (file in parsed and unquote(place) not in parsed[file].places):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert followed > 1000
    assert not broken


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """The address of a local server of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args) -> None: ...

    with ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_opens_every_page_without_an_error(site, address, tmp_path):
    errors = {}
    for path in sorted(site.rglob("index.html")):
        name = path.parent.relative_to(site).as_posix()
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom",
            f"{address}/{name}/",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0 and "</article>" in result.stdout, result.stderr
        errors[name] = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    assert len(errors) > 25
    assert not any(errors.values()), errors
