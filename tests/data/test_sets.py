import sys
import warnings
from pathlib import Path

import datasets
import datasets.config
import datasets.exceptions
import huggingface_hub.constants
import numpy as np
import pytest

from levitax.data import (
    Arrays,
    DataSet,
    eval_batches,
    open_data,
    Preprocessing,
    Relabelled,
    Split,
    Subset,
    train_batches,
)

from .making import png


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Makes the Hugging Face hub unreachable."""
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


def test_digits():
    # Grey, whatever `channels` is.
    data = open_data("digits", channels=3)
    assert data.preprocessing.channels == 1 and data.classes == tuple("0123456789")
    pixels = []
    for split, each in ((data.train, 400), (data.validation, 100)):
        assert isinstance(split, Arrays) and isinstance(split, Split)
        assert np.bincount(split.labels).tolist() == [each] * 10 and len(split.images) == 10 * each
        assert split.read(7).shape == (28, 28, 1) and np.array_equal(split.read(7), split.images[7])
        assert split.name(7) == "image 7"
        pixels.append(split.images)
    normalised = (np.concatenate(pixels) / 255 - data.preprocessing.mean) / data.preprocessing.std
    assert abs(normalised.mean()) < 0.02 and abs(normalised.std() - 1) < 0.02


def test_a_folder_called_digits(tmp_path, monkeypatch):
    for split in ("train", "val"):
        (tmp_path / "digits" / split / "cat").mkdir(parents=True)
        (tmp_path / "digits" / split / "cat" / "0.png").write_bytes(png(0))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"not the folder `digits`\. For the folder, write './digits'"):
        assert len(open_data("digits").classes) == 10
    for where in ("./digits", "digits/", Path("digits"), tmp_path / "digits"):
        assert open_data(where).classes == ("cat",)


@pytest.mark.parametrize("channels", (0, 2, 4))
def test_other_channels(channels, unchecked):
    with pytest.raises(ValueError, match=f"`channels` is {channels}; expected one of 3, 1"):
        open_data("digits", channels=channels)


@pytest.mark.parametrize("url", ("gs://bucket/data", "s3://bucket", "https://example.org/data.zip", "hf://datasets/x"))
def test_a_url(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in (url, Path(url)):
        with pytest.raises(ValueError, match=r"`where` is .*, a URL; expected a path on this machine"):
            open_data(where)
        # The URL is also refused if another program has made a folder of that name.
        Path(url).mkdir(parents=True, exist_ok=True)


def test_an_empty_path():
    with pytest.raises(ValueError, match="`where` is empty; expected a path"):
        open_data("")


def test_a_folder_that_does_not_exist(tmp_path):
    for where in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"There is no folder `{where}`; expected one with `train/` and"):
            open_data(where)


@pytest.mark.parametrize("name", ("data.zip", "train.parquet"))
def test_a_file_in_place_of_a_folder(tmp_path, name):
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(FileNotFoundError, match=rf"There is no folder `.*{name}`, only a file or a broken link"):
        open_data(tmp_path / name)


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"The folder `{tmp_path}` is empty; expected `train/` and `val/` in"):
        open_data(tmp_path)


@pytest.mark.parametrize("where", ("nobody/nothing", "nothing", Path("nobody/nothing")))
def test_a_name_that_is_neither_a_folder_nor_on_the_hub(where):
    with pytest.raises(
        FileNotFoundError, match=f"`{where}` is not a folder, and cannot be loaded from the Hugging Face hub: "
    ) as refusal:
        open_data(where)
    assert "Check the name, the network and your access." in str(refusal.value)
    # It did not even send a request.
    assert "OfflineModeIsEnabled" in str(refusal.value)


def test_a_failure_of_the_hub_names_the_data_set(monkeypatch):
    def fails(name):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from ValueError("shard 3 is corrupt")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ValueError, match="The hub's data set `some/data` cannot be loaded: shard 3 is corrupt"):
        open_data("some/data")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"`levitax.data.open_data` needs datasets: run `pip install \"levi"):
        open_data("some/data")


def test_each_split_has_one_warning(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "0.png").write_bytes(png(0))
        (tmp_path / split / "cat" / "1.heic").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_data(tmp_path)
    assert [warning.category for warning in caught] == [UserWarning] * 2


WRONG_LABELS = {
    "negative": (np.array([0, -1]), ValueError, r"`labels\[1\]` is -1; expected class numbers, from 0"),
    "large": (np.array([0, 2**32 + 1]), ValueError, r"`labels\[1\]` is 4294967297"),
    "floats": (np.array([0.0, 0.7]), TypeError, r"`labels` has shape \(2,\) and dtype float64; expected integers"),
    "more": (np.array([0, 1, 1]), ValueError, r"`labels` has shape \(3,\)"),
    "fewer": (np.array([0]), ValueError, r"`labels` has shape \(1,\)"),
    "a column": (np.array([[0], [1]]), ValueError, r"`labels` has shape \(2, 1\)"),
}


@pytest.mark.parametrize(("labels", "kind", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_wrong_labels(labels, kind, message, unchecked):
    split = Arrays(np.zeros((2, 4, 4, 1), np.uint8), labels)
    sound = Arrays(split.images, np.array([0, 1]))
    preprocessing = Preprocessing(class_names=("a", "b"))
    for batches in (
        lambda: eval_batches(Relabelled(sound, labels), lambda image, rng: image, batch_size=1),
        # A negative label is refused, not counted from the end.
        lambda: DataSet(sound, split, preprocessing).in_order_of(("b", "a")),
        lambda: train_batches(split, lambda image, rng: image, batch_size=1, steps=1, seed=0),
        lambda: eval_batches(split, lambda image, rng: image, batch_size=1),
    ):
        with pytest.raises(kind, match=message):
            batches()


def test_a_subset_has_the_chosen_images():
    whole = Arrays(np.arange(5, dtype=np.uint8)[:, None, None, None], np.array([0, 1, 2, 0, 1]))
    some = Subset(whole, np.array([4, 1, 1]))
    assert some.labels.tolist() == [1, 1, 1] and isinstance(some, Split)
    assert [int(some.read(index)[0, 0, 0]) for index in range(3)] == [4, 1, 1]
    assert some.name(0) == whole.name(4)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([True, False, True, False, False]), r"np\.flatnonzero\(mask\)"),
        (np.array([0, 5]), r"`indices\[1\]` is 5.*numbers from 0 to 4"),
        (np.array([-1]), r"`indices\[0\]` is -1"),
        (np.array([[0]]), "shape"),
    ],
    ids=("mask", "too large", "negative", "rank"),
)
def test_indices_that_choose_no_images(indices, message, unchecked):
    whole = Arrays(np.zeros((5, 1, 1, 1), np.uint8), np.zeros(5, np.int32))
    with pytest.raises((TypeError, ValueError), match=message):
        Subset(whole, indices)
