"""Where the progress bar of a training run is shown."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from levitax._progress import progress_bar, say


def in_kernel(monkeypatch, kernel: Any) -> None:
    shell = SimpleNamespace(kernel=kernel)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def run() -> None:
    with progress_bar(20) as bar:
        say("a line")
        bar.update(20)


@pytest.mark.parametrize("kernel", (None, object()), ids=("IPython on a terminal", "a notebook"))
def test_a_notebook_shows_the_bar_and_a_file_does_not(monkeypatch, capsys, kernel):
    in_kernel(monkeypatch, kernel)
    run()
    printed = capsys.readouterr()
    assert "a line\n" in printed.out and printed.err == ""
    assert ("20/20" in printed.out) == (kernel is not None)


def test_a_terminal_shows_the_bar_apart_from_the_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run()
    printed = capsys.readouterr()
    assert printed.out == "a line\n" and "20/20" in printed.err


def test_other_processes_show_nothing(monkeypatch, capsys):
    in_kernel(monkeypatch, object())
    monkeypatch.setattr("jax.process_index", lambda: 1)
    run()
    assert capsys.readouterr() == ("", "")
