"""Errors that end a command."""

import importlib
import json

import pytest

from levitax.cli import main
from levitax.cli._errors import errors_in_a_line, usage
from levitax.data._sets import match_classes
from levitax.train import Recipe


def test_errors_of_levitax_are_one_line(capsys, unchecked):
    with pytest.raises(SystemExit) as exit, errors_in_a_line("levitax train"):
        match_classes(("a",), ("b",))
    assert exit.value.code == 1
    assert capsys.readouterr().err.startswith("levitax train: error: data and model have different classes")


def test_wrong_options_have_a_status_of_their_own(capsys, unchecked):
    with pytest.raises(SystemExit) as exit, errors_in_a_line("levitax train"), usage():
        Recipe(epochs=0)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("levitax train: error: `epochs` is 0; expected")


def test_a_home_folder_after_the_sign(monkeypatch, capsys, tmp_path):
    pytest.importorskip("cyclopts", reason="needs the extra `cli`")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["summary", "--json", "--model=~/nowhere.safetensors"])
    assert f"There is no `{tmp_path}/nowhere.safetensors`" in capsys.readouterr().err


def foreign_value():
    json.loads("{")


def foreign_import():
    # A package that another package needs, which no extra of levitax has.
    importlib.import_module("no_such_package")


def foreign_float():
    raise FloatingPointError("invalid value (nan) encountered in sub")


@pytest.mark.parametrize("fail", (foreign_value, foreign_import, foreign_float))
def test_other_errors_are_one_line_and_keep_their_traceback_to_debug(fail, capsys):
    with pytest.raises(SystemExit) as exit, errors_in_a_line("levitax train"):
        fail()
    (line,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1 and line.endswith("(--debug shows the traceback)")
    with pytest.raises((ValueError, ModuleNotFoundError, FloatingPointError)), errors_in_a_line("train", debug=True):
        fail()
