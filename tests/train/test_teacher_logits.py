"""A teacher's logits that are computed once and kept in a file."""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import levitax
from levitax.data import Arrays, DataSet, open_data, Preprocessing, Subset
from levitax.train import load_teacher, TeacherLogits


IMAGES, CLASSES = 6, 3
NAMES = ("ant", "bee", "cat")
LOGITS = np.random.default_rng(0).normal(0, 3, (IMAGES, CLASSES)).astype(np.float32)
PREPROCESSING = Preprocessing(image_size=2, mean=(0.0,), std=(1.0,), crop_ratio=1.0, class_names=NAMES)


class Images(NamedTuple):
    """A split of one-colour images, of which some are corrupt."""

    labels: np.ndarray
    corrupt: tuple[int, ...] = ()

    def read(self, index):
        if index in self.corrupt:
            raise OSError("corrupt")
        return np.full((2, 2, 1), index, np.uint8)

    def name(self, index):
        return f"{index}.png"


def data_of(split: Any, names: tuple[str, ...] = NAMES) -> DataSet:
    preprocessing = Preprocessing(image_size=2, mean=(0.0,), std=(1.0,), crop_ratio=1.0, class_names=names)
    return DataSet(split, split, preprocessing)


LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)
DATA, CORRUPT = data_of(Images(LABELS)), data_of(Images(LABELS, corrupt=(2, 4)))


class Teacher(eqx.Module):
    """Answers an image with the row of a table that its colour is the number of."""

    table: Any

    def __call__(self, image, state):
        return self.table[jnp.round(image[0, 0, 0] * 255).astype(jnp.int32)], state


def predictor(table: Any) -> Any:
    return levitax.Predictor(teacher := Teacher(jnp.asarray(table)), eqx.nn.State(teacher))


def compute(table=LOGITS, data=DATA) -> TeacherLogits:
    return TeacherLogits.compute(predictor(table), data)


def changed(row, value, dtype: Any = np.float32):
    logits = LOGITS.astype(dtype)
    logits[row] = value
    return logits


def test_logits_are_computed_written_and_read(tmp_path):
    path = tmp_path / "logits.safetensors"
    teacher = compute()
    assert teacher.logits.dtype == np.float16 and teacher.class_names == NAMES
    np.testing.assert_allclose(teacher.logits, LOGITS, rtol=1e-3)
    teacher.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["logits.safetensors"]
    for read in (TeacherLogits.load(path), load_teacher(path, PREPROCESSING)):
        assert isinstance(read, TeacherLogits)
        of_data = read.for_data(DATA)
        np.testing.assert_array_equal(of_data.logits, teacher.logits)
        rows = of_data.rows(np.array([4, 1]))
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, teacher.logits[[4, 1]])


def test_columns_follow_the_classes_of_the_data():
    other = DATA.in_order_of(("cat", "ant", "bee"))
    of_other = compute().for_data(other)
    np.testing.assert_array_equal(of_other.logits, compute().logits[:, [2, 0, 1]])
    assert of_other.class_names == other.classes
    # They now belong to the other order.
    np.testing.assert_array_equal(of_other.for_data(other).logits, of_other.logits)
    np.testing.assert_array_equal(of_other.for_data(DATA).logits, compute().logits)


def test_the_row_of_a_corrupt_image_is_nan():
    with pytest.warns(UserWarning):
        teacher = compute(data=CORRUPT)
    assert np.flatnonzero(np.isnan(teacher.logits).all(1)).tolist() == [2, 4]
    readable = [0, 1, 3, 5]
    np.testing.assert_allclose(teacher.logits[readable], LOGITS[readable], rtol=1e-3)
    # Training skips them too.
    teacher.for_data(CORRUPT)
    with pytest.raises(ValueError, match=r"no logits for `2\.png`: row 2 .* one of 2 such rows.*Write the file again"):
        teacher.for_data(DATA)
    with pytest.raises(ValueError, match=r"no logits for `4\.png`: row 4"):
        teacher.for_data(data_of(Images(LABELS, corrupt=(2,))))


@pytest.mark.parametrize("value", (1e5, -1e5, np.inf, np.nan))
def test_logits_without_a_place_in_float16_are_refused(value):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"logits of `3\.png` reach .*up to 65504"):
        warnings.simplefilter("error")
        compute(changed((3, 1), value))


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="returned 2 logits for an image; expected one for each of the 3 classes"):
        compute(LOGITS[:, :2])


WRONG: dict[str, tuple[np.ndarray, str]] = {
    "images": (LOGITS[:5], r"shape \(5, 3\); expected \(6, 3\)"),
    "classes": (LOGITS[:, :2], r"shape \(6, 2\); expected \(6, 3\)"),
    "NaN": (changed((3, 1), np.nan), r"no logits for `3\.png`"),
    "overflow": (changed((3, 1), np.inf, np.float16), r"no logits for `3\.png`"),
    # Read as logits, they would teach class 0.
    "zeros": (changed(3, 0), r"no logits for `3\.png`: row 3 is all 0"),
}


@pytest.mark.parametrize(("logits", "message"), WRONG.values(), ids=WRONG)
def test_logits_that_do_not_fit_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        compute()._replace(logits=logits).for_data(DATA)


OTHERS: dict[str, DataSet] = {
    "another order": data_of(Images(LABELS[::-1].copy())),
    "other classes": data_of(Images(LABELS), ("ant", "bee", "dog")),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_images_are_refused(other):
    with pytest.raises(ValueError, match=r"in another order|different classes"):
        compute().for_data(other)


def test_files_of_other_names_are_refused(tmp_path):
    pixels = np.zeros((4, 4, 1), np.uint8)
    for name in ("a", "b"):
        for part, number in (("train", 3), ("val", 1)):
            for kind in NAMES:
                folder = tmp_path / name / part / kind
                folder.mkdir(parents=True)
                for index in range(number):
                    Image.fromarray(pixels[:, :, 0]).save(folder / f"{name}{index}.png")
    first, second = (open_data(tmp_path / name, channels=1) for name in ("a", "b"))
    predict = predictor(np.ones((256, 3), np.float32))
    ready = [one._replace(preprocessing=PREPROCESSING) for one in (first, second)]
    teacher = TeacherLogits.compute(predict, ready[0])
    teacher.for_data(ready[0])
    # Of each class the first two images, and the last two: the same labels, other files.
    some, others = (
        ready[0]._replace(train=Subset(ready[0].train, np.array(indices)))
        for indices in ([0, 1, 3, 4, 6, 7], [1, 2, 4, 5, 7, 8])
    )
    of_some = TeacherLogits.compute(predict, some)
    of_some.for_data(some)
    with pytest.raises(ValueError, match="for other training images"):
        of_some.for_data(others)
    with pytest.raises(ValueError, match="for other training images"):
        teacher.for_data(ready[1])


def test_other_files_are_refused(tmp_path, make):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    compute().save(tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-4])
    save_file({"logits": LOGITS}, tmp_path / "bare.safetensors")
    levitax.save(tmp_path / "weights.safetensors", *make())
    for name in ("empty", "cut", "bare", "weights"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors` holds no teacher's logits: .*evaluate --logits"):
            TeacherLogits.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        TeacherLogits.load(tmp_path / "nowhere.safetensors")
    # Old logits stay if new ones cannot be written.
    with pytest.raises(OSError, match="no folder"):
        compute().save(tmp_path / "no" / "where.safetensors")
    assert list(load_file(tmp_path / "whole.safetensors")) == ["logits"]


def test_a_teacher_in_memory_needs_no_file_names():
    split = Arrays(np.arange(IMAGES, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2), LABELS)
    data = data_of(split)
    assert compute(data=data).for_data(data).fingerprint["names"] is None
