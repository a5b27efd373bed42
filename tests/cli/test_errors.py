"""Errors that end a command."""

import importlib
import json

import pytest

from levitax.cli._errors import errors_in_a_line
from levitax.data._sets import match_classes


def test_errors_of_levitax_are_one_line(capsys, unchecked):
    with pytest.raises(SystemExit) as exit, errors_in_a_line("levitax train"):
        match_classes(("a",), ("b",))
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("levitax train: error: data and model have different classes")


def foreign_value():
    json.loads("{")


def foreign_import():
    # A package that another package needs, which no extra of levitax has.
    importlib.import_module("no_such_package")


def foreign_float():
    raise FloatingPointError("invalid value (nan) encountered in sub")


@pytest.mark.parametrize("fail", (foreign_value, foreign_import, foreign_float))
def test_other_errors_keep_their_traceback(fail):
    with pytest.raises((ValueError, ModuleNotFoundError, FloatingPointError)), errors_in_a_line("levitax train"):
        fail()
