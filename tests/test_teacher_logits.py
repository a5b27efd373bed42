"""The file of a teacher's logits that the examples write and read."""

import argparse
import importlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from levitax.data import Batch, eval_batches


with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "examples")
    teacher_logits: Any = importlib.import_module("teacher_logits")

IMAGES, CLASSES = 6, 3
LOGITS = np.random.default_rng(0).normal(0, 3, (IMAGES, CLASSES)).astype(np.float32)


class Images(NamedTuple):
    """A split of which some images are corrupt."""

    labels: np.ndarray
    corrupt: tuple[int, ...] = ()

    def read(self, index):
        if index in self.corrupt:
            raise OSError("corrupt")
        return np.zeros((2, 2, 3), np.uint8)

    def name(self, index):
        return f"{index}.png"


SPLIT = Images(np.zeros(IMAGES, np.int32))
CORRUPT = Images(np.zeros(IMAGES, np.int32), corrupt=(2, 4))


def classified(logits):
    """Batches of two images."""
    for start in range(0, IMAGES, 2):
        rows = np.arange(start, start + 2)
        yield Batch(np.zeros((2, 2, 2, 3), np.uint8), np.zeros(2, np.int32), rows, np.ones(2, np.float32)), logits[rows]


def changed(row, value, dtype: Any = np.float32):
    logits = LOGITS.astype(dtype)
    logits[row] = value
    return logits


def test_logits_are_collected_written_and_read(tmp_path, capsys):
    seen = []
    logits = teacher_logits.collect_logits(SPLIT, CLASSES, classified(LOGITS), advance=seen.append)
    assert logits.dtype == np.float16 and sum(seen) == IMAGES
    np.testing.assert_allclose(logits, LOGITS, rtol=1e-3)
    teacher_logits.write_logits(tmp_path / "logits.npy", logits)
    assert [path.name for path in tmp_path.iterdir()] == ["logits.npy"] and capsys.readouterr().out == ""
    read = teacher_logits.read_logits(str(tmp_path / "logits.npy"))
    np.testing.assert_array_equal(read, logits)
    teacher_logits.check_logits(read, SPLIT, CLASSES)


def test_an_image_that_cannot_be_read_has_a_row_of_nan(tmp_path, capsys):
    readable = np.array([index not in CORRUPT.corrupt for index in range(IMAGES)])
    with (
        pytest.warns(UserWarning),
        eval_batches(CORRUPT, lambda image, rng: image, batch_size=4) as read,
    ):
        # The loader repeats other images in place of corrupt ones and after the last.
        classified = [(batch, LOGITS[batch.indices]) for batch in read]
    logits = teacher_logits.collect_logits(CORRUPT, CLASSES, classified)
    assert np.isnan(logits).all(1).tolist() == (~readable).tolist()
    np.testing.assert_allclose(logits[readable], LOGITS[readable], rtol=1e-3)
    teacher_logits.write_logits(tmp_path / "logits.npy", logits)
    assert "2 of 6 images could not be read; their rows are NaN" in capsys.readouterr().out
    # Training skips them too.
    teacher_logits.check_logits(logits, CORRUPT, CLASSES)
    with pytest.raises(ValueError, match=r"no logits for `2\.png`: row 2 .* one of 2 such rows.*Write the file again"):
        teacher_logits.check_logits(logits, SPLIT, CLASSES)
    with pytest.raises(ValueError, match=r"no logits for `4\.png`: row 4"):
        teacher_logits.check_logits(logits, Images(SPLIT.labels, corrupt=(2,)), CLASSES)


@pytest.mark.parametrize("value", (1e5, -1e5, np.inf, np.nan))
def test_logits_without_a_place_in_float16_are_refused(value):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"logits of `3\.png` reach .*up to 65504"):
        warnings.simplefilter("error")
        teacher_logits.collect_logits(SPLIT, CLASSES, classified(changed((3, 1), value)))


WRONG: dict[str, tuple[np.ndarray, str]] = {
    "images": (LOGITS[:5], r"shape \(5, 3\); expected \(6, 3\)"),
    "classes": (LOGITS[:, :2], r"shape \(6, 2\); expected \(6, 3\)"),
    "class numbers": (LOGITS.argmax(1), r"shape \(6,\); expected \(6, 3\)"),
    "integers": (LOGITS.astype(int), "dtype int64; expected floating-point"),
    "NaN": (changed((3, 1), np.nan), r"no logits for `3\.png`"),
    "overflow": (changed((3, 1), np.inf, np.float16), r"no logits for `3\.png`"),
    # Whoever takes it for logits learns class 0.
    "zeros": (changed(3, 0), r"no logits for `3\.png`: row 3 is all 0"),
}


@pytest.mark.parametrize(("logits", "message"), WRONG.values(), ids=WRONG)
def test_logits_that_do_not_fit_are_refused(logits, message, tmp_path):
    np.save(tmp_path / "logits.npy", logits)
    with pytest.raises(ValueError, match=message):
        teacher_logits.check_logits(teacher_logits.read_logits(str(tmp_path / "logits.npy")), SPLIT, CLASSES)


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "whole.npy", LOGITS)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-4])
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, LOGITS)
    for name in ("objects", "empty", "cut", "archive"):
        with pytest.raises(ValueError, match=rf"{name}\.npy` holds no logits: .*`evaluate\.py --logits`"):
            teacher_logits.read_logits(str(tmp_path / f"{name}.npy"))
    with pytest.raises(FileNotFoundError):
        teacher_logits.read_logits(str(tmp_path / "nowhere.npy"))


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    assert teacher_logits.logits_path(str(tmp_path / "logits.npy")) == tmp_path / "logits.npy"
    with pytest.raises(argparse.ArgumentTypeError, match=r"must end in \.npy"):
        teacher_logits.logits_path(str(tmp_path / "logits"))
    with pytest.raises(argparse.ArgumentTypeError, match="there is no folder"):
        teacher_logits.logits_path(str(tmp_path / "nowhere" / "logits.npy"))
