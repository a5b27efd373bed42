import errno
import os
from pathlib import Path
from typing import Any

import pytest

from levitax._files import as_path, replacing


pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize("value", ("~/a.onnx", Path("~/a.onnx")), ids=repr)
def test_a_tilde_is_the_users_home(value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("path", value) == tmp_path / "a.onnx"


@pytest.mark.parametrize("value", ("runs/a~b.onnx", "~nobody-of-this-name/a.onnx", "C:/a.onnx", "a:b/c"))
def test_other_paths_stay_as_they_are(value):
    assert as_path("path", value) == Path(value)
    assert as_path("path", Path(value)) == Path(value)


URLS = ("gs://bucket/a", "s3://bucket/a", "http://host/a", "file:///tmp/a", "hf://owner/name", Path("gs://bucket/a"))


@pytest.mark.parametrize("value", URLS, ids=repr)
def test_a_url_is_refused(value):
    with pytest.raises(ValueError, match=r"`folder` is '.*', a URL; expected a path on this machine\. Download the"):
        as_path("folder", value)


@pytest.mark.parametrize("value", (None, 3, b"a.onnx", ["a.onnx"]), ids=repr)
def test_values_that_are_not_paths_are_refused_by_type(value: Any):
    with pytest.raises(TypeError, match=rf"`path` is of type `{type(value).__name__}`; expected a path"):
        as_path("path", value)


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(ValueError, match="`path` is empty"):
        as_path("path", "")


def test_a_read_only_disk(monkeypatch, tmp_path):
    def refuse(*arguments, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "hidden name")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    message = f"`{tmp_path}/a.onnx` could not be written: {os.strerror(errno.EROFS)}. Existing files are unchanged."
    with pytest.raises(OSError) as raised, replacing(tmp_path / "a.onnx"):
        pass
    assert str(raised.value) == message
