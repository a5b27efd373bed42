import io
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from levitax.data import Arrays, IMAGENET_MEAN, IMAGENET_STD, open_data, Pictures, Split


CLASSES = datasets.ClassLabel(names=["cat", "dog", "owl"])


@pytest.fixture(autouse=True)
def apart(tmp_path_factory, monkeypatch):
    """Tables are kept apart from the user's, and the hub is out of reach."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


def png(number):
    """A picture of one colour, 8 rows by 6 columns."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 6, 3), (number, 2 * number, 100), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Makes files in a folder, each picture of its own colour; what ends in / becomes a folder."""

    def folder(*files):
        for number, file in enumerate(files):
            path = tmp_path / "data" / file
            (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not file.endswith("/"):
                path.write_bytes(b"text" if path.suffix == ".txt" else png(number))
        return tmp_path / "data"

    return folder


@pytest.fixture
def parquet(tmp_path):
    """Writes tables as parquet files in a folder."""

    def parquet(**tables):
        (tmp_path / "data").mkdir(exist_ok=True)
        for name, table in tables.items():
            path = tmp_path / "data" / f"{name}-00000-of-00001.parquet"
            table.to_parquet(path) if isinstance(table, datasets.Dataset) else pq.write_table(table, path)
        return tmp_path / "data"

    return parquet


def table(*labels, kind: Any = CLASSES, image="image", label="label", pictures=None):
    """Pictures numbered from 0, with labels of a kind."""
    pictures = pictures or [{"bytes": png(number), "path": f"{number}.png"} for number in range(len(labels))]
    features = datasets.Features({image: datasets.Image(), label: kind})
    return datasets.Dataset.from_dict({image: pictures, label: list(labels)}, features=features)


def names(split):
    return [Path(split.name(index)).name for index in range(len(split.labels))]


def colours(split):
    """Which picture each is."""
    return [int(split.read(index)[0, 0, 0]) for index in range(len(split.labels))]


# The digits.


def test_digits():
    # Grey in any case.
    data = open_data("digits", channels=3)
    assert data.channels == 1 and data.classes == tuple("0123456789")
    pixels = []
    for split, each in ((data.train, 400), (data.validation, 100)):
        assert isinstance(split, Arrays) and isinstance(split, Split)
        assert np.bincount(split.labels).tolist() == [each] * 10 and len(split.images) == 10 * each
        assert split.read(7).shape == (28, 28, 1) and np.array_equal(split.read(7), split.images[7])
        assert split.name(7) == "picture 7"
        pixels.append(split.images)
    normalised = (np.concatenate(pixels) / 255 - data.mean) / data.std
    assert abs(normalised.mean()) < 0.02 and abs(normalised.std() - 1) < 0.02


# Folders of pictures.


@pytest.mark.parametrize("name", ("val", "validation", "valid", "dev", "test"))
def test_folders_like_those_of_imagenet(folder, name):
    where = folder(
        "train/dog/0.png", "train/cat/1.png", "train/dog/2.png", f"{name}/dog/3.png", f"{name}/cat/4.png", "README.txt"
    )
    data = open_data(where)
    # Classes are numbered in the order of their names.
    assert data.classes == ("cat", "dog") and data.channels == 3
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    for split, expected in ((data.train, {0: 1, 1: 0, 2: 1}), (data.validation, {3: 1, 4: 0})):
        assert isinstance(split, Pictures) and isinstance(split, Split)
        assert split.labels.dtype == np.int32
        assert dict(zip(colours(split), split.labels.tolist(), strict=True)) == expected
        assert names(split) == [f"{number}.png" for number in colours(split)]
        assert all(os.path.isfile(split.name(index)) for index in range(len(split.labels)))
        assert split.read(0).shape == (8, 6, 3) and split.read(0).dtype == np.uint8


def test_a_path_as_a_string_and_in_the_home_folder(folder, monkeypatch):
    where = folder("train/cat/0.png", "val/cat/1.png")
    assert names(open_data(str(where)).train) == ["0.png"]
    monkeypatch.setenv("HOME", str(where.parent))
    assert names(open_data("~/data").train) == ["0.png"]


def test_what_is_called_validation_comes_before_what_is_called_test(folder):
    data = open_data(folder("train/cat/0.png", "test/cat/1.png", "val/cat/2.png"))
    assert (names(data.train), names(data.validation)) == (["0.png"], ["2.png"])


def test_one_class(folder):
    data = open_data(folder("train/cat/0.png", "val/cat/1.png"))
    assert data.classes == ("cat",) and data.train.labels.tolist() == data.validation.labels.tolist() == [0]


def test_capital_letters_come_first_and_ten_before_nine(folder):
    classes = ("Owl", "a10", "a9")
    files = [f"{part}/{name}/{part}.png" for part in ("train", "val") for name in classes[::-1]]
    data = open_data(folder(*files))
    assert data.classes == classes
    # The first file was of the last class.
    assert data.train.labels[colours(data.train).index(0)] == 2


@pytest.mark.parametrize("name", ("train", "test", "val", "validation", "train_station", "my test"))
def test_a_class_may_be_called_like_a_part(folder, name):
    where = folder(f"train/{name}/0.png", "train/boat/1.png", f"val/{name}/2.png", "val/boat/3.png")
    data = open_data(where)
    assert sorted(names(data.train)) == ["0.png", "1.png"]
    assert sorted(names(data.validation)) == ["2.png", "3.png"]
    assert data.classes == tuple(sorted(("boat", name)))


@pytest.mark.parametrize("name", ("train_0", "val_0", "test", "ILSVRC2012_val_00000001"))
def test_a_picture_may_be_called_like_a_part(folder, name):
    data = open_data(folder(f"train/cat/{name}.png", "train/cat/x.png", f"test/cat/{name}.png", "test/cat/x.png"))
    assert sorted(colours(data.train)) == [0, 1] and sorted(colours(data.validation)) == [2, 3]


@pytest.mark.parametrize("stray", ("train/5.png", "train/cat/more/5.png", "5.png"))
def test_the_classes_are_the_folders_in_train(folder, stray):
    where = folder("train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png", stray)
    with suppress(ValueError):
        assert open_data(where).classes == ("cat", "dog")


@pytest.mark.parametrize("channels", (1, 3))
def test_pictures_are_read_in_grey_or_in_colours(folder, channels):
    data = open_data(folder("train/cat/0.png", "val/cat/1.png"), channels=channels)
    assert data.channels == channels
    assert data.validation.read(0).shape == (8, 6, channels)
    if channels == 1:
        # As `preprocess` has it: the mean over the colours.
        np.testing.assert_allclose(data.mean, [np.mean(IMAGENET_MEAN)])
        np.testing.assert_allclose(data.std, [np.mean(IMAGENET_STD)])


def test_a_damaged_picture_is_damaged_only_when_read(folder):
    where = folder("train/cat/0.png", "train/cat/1.png", "val/cat/2.png")
    (where / "train/cat/1.png").write_bytes(png(1)[:50])
    train = open_data(where).train
    assert names(train) == ["0.png", "1.png"] and train.read(0)[0, 0, 0] == 0
    with pytest.raises(OSError):
        train.read(1)


# Folders of parquet files.


@pytest.mark.parametrize("name", ("validation", "test"))
@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "labels"), ("picture", "fine_label")])
def test_parquet_files_with_names_of_classes(parquet, name, image, label):
    columns = {"image": image, "label": label}
    data = open_data(parquet(**{"train": table(2, 0, 1, **columns), name: table(1, **columns)}))
    assert data.classes == ("cat", "dog", "owl")
    assert data.train.labels.tolist() == [2, 0, 1] and data.validation.labels.tolist() == [1]
    assert data.train.labels.dtype == np.int32
    assert colours(data.train) == [0, 1, 2] and names(data.train) == ["0.png", "1.png", "2.png"]
    assert isinstance(data.train, Split)


@pytest.mark.parametrize("kind", ("uint8", "int64"))
def test_parquet_files_with_numbers_only(parquet, kind):
    kind = datasets.Value(kind)
    data = open_data(parquet(train=table(0, 2, kind=kind), validation=table(4, kind=kind)))
    assert data.classes == tuple("01234")
    assert data.train.labels.tolist() == [0, 2] and data.validation.labels.tolist() == [4]


def test_parquet_files_that_others_wrote(parquet):
    rows = lambda *labels: pa.table({"image": [{"bytes": png(9), "path": None}] * len(labels), "label": labels})
    data = open_data(parquet(train=rows(0, 1), validation=rows(1)), channels=1)
    assert data.classes == ("0", "1") and data.train.read(1).shape == (8, 6, 1)
    assert data.train.name(1) == "picture 1"


@pytest.mark.parametrize("picture", (None, {"bytes": b"", "path": None}, {"bytes": b"", "path": "gone.png"}))
def test_a_picture_that_is_not_in_the_table_is_damaged(parquet, picture):
    whole = {"bytes": png(1), "path": "whole.png"}
    data = open_data(parquet(train=table(0, 1, pictures=[whole, picture]), validation=table(0)))
    assert data.train.read(0)[0, 0, 0] == 1
    with pytest.raises(OSError):
        data.train.read(1)
    assert data.train.name(1) in ("picture 1", "gone.png")


# What is refused.


@pytest.mark.parametrize("channels", (0, 2, 4))
def test_other_channels(channels, unchecked):
    with pytest.raises(ValueError, match=f"`channels` is {channels}; expected one of 3, 1"):
        open_data("digits", channels=channels)


def test_a_folder_that_is_not_there(tmp_path):
    for where in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"There is no folder `{where}`; expected one with `train/` and"):
            open_data(where)


def test_a_file_in_place_of_a_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"There is no folder `.*README\.txt`"):
        open_data(folder("README.txt") / "README.txt")


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"The folder `{tmp_path}` is empty; expected `train/` and `val/` in"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("files", "there"),
    [
        (("train/cat/0.png",), "'train'"),
        (("train/cat/0.png", "training/cat/0.png"), "'train', 'training'"),
        (("val/cat/0.png",), "'val'"),
        (("cat/0.png", "dog/1.png"), "'cat', 'dog'"),
        (("0.png",), "no folders"),
    ],
)
def test_nothing_to_train_on_or_to_validate_with(folder, files, there):
    where = folder(*files)
    with pytest.raises(
        ValueError, match=f"`{where}` has {there} in it; expected `train/` and one of 'validation', 'valid', 'val',"
    ):
        open_data(where)


@pytest.mark.parametrize("part", ("train", "val"))
@pytest.mark.parametrize("content", ((), ("notes.txt",)))
def test_a_class_without_pictures(folder, part, content):
    files = [f"{part}/dog/{file}" for file in content or ("",)]
    other = {"train": "val", "val": "train"}[part]
    where = folder("train/cat/0.png", "val/cat/1.png", f"{other}/dog/2.png", *files)
    with pytest.raises(ValueError, match=f"`{where}/{part}/dog` has no pictures in it; remove the folder or fill it"):
        open_data(where)


def test_classes_without_pictures_in_both_parts(folder):
    where = folder("train/cat/0.png", "val/cat/1.png", "train/dog/notes.txt", "val/dog/notes.txt")
    with pytest.raises(ValueError, match=f"`{where}/train/dog` has no pictures in it"):
        open_data(where)


@pytest.mark.parametrize("part", ("train", "val"))
def test_pictures_without_classes(folder, part):
    other = {"train": "val", "val": "train"}[part]
    where = folder(f"{part}/0.png", f"{part}/1.png", f"{other}/cat/2.png")
    with pytest.raises(ValueError, match=f"`{where}/{part}` has no folders in it; expected one for each class"):
        open_data(where)


def test_folders_of_different_classes_are_named(folder):
    where = folder("train/cat/0.png", "train/dog/1.png", "train/owl/1.png", "val/cat/2.png", "val/elk/3.png")
    with pytest.raises(ValueError, match=f"Training and validation of `{where}` have different classes: ") as refusal:
        open_data(where)
    assert "only in training 'dog', 'owl', only in validation 'elk'. Their numbers would" in str(refusal.value)


def test_a_class_that_validation_lacks(folder):
    where = folder("train/cat/0.png", "train/dog/1.png", "val/cat/2.png")
    with pytest.raises(ValueError, match="only in training 'dog', only in validation none"):
        open_data(where)


@pytest.mark.parametrize("others", (["cat", "elk", "owl"], ["dog", "cat", "owl"], ["cat", "dog"]))
def test_tables_of_different_classes_are_refused(parquet, others):
    where = parquet(train=table(0, 1), validation=table(0, 1, kind=datasets.ClassLabel(names=others)))
    with pytest.raises(ValueError, match=f"Training and validation of `{where}` have different classes"):
        open_data(where)


@pytest.mark.parametrize(("part", "name"), [("train", "train"), ("validation", "validation"), ("test", "test")])
def test_negative_labels(parquet, part, name):
    tables = {"train": table(0, 1), part: table(2, -1, 0, -1)}
    where = parquet(**{"validation": table(0)} | tables if part != "test" else tables)
    message = f"Picture 1 of '{name}' of `{where}` has label -1, and 1 more are out of range; expected numbers from 0 t"
    with pytest.raises(ValueError, match=f"{message}o 2"):
        open_data(where)


def test_negative_labels_without_names(parquet):
    kind = datasets.Value("int64")
    with pytest.raises(ValueError, match=r"has label -5, and 0 more are out of range; expected numbers from 0\.$"):
        open_data(parquet(train=table(0, -5, kind=kind), validation=table(0, kind=kind)))


def test_labels_beyond_the_classes(parquet):
    # As others may write them.
    rows = pa.table({"image": [{"bytes": png(1), "path": "x.png"}] * 2, "label": [0, 7]})
    rows = rows.replace_schema_metadata(table(0).features.arrow_schema.metadata)
    where = parquet(train=rows, validation=table(0))
    message = (
        f"Picture 1 of 'train' of `{where}` has label 7, and 0 more are out of range; expected numbers from 0 to 2"
    )
    with pytest.raises(ValueError, match=message):
        open_data(where)


@pytest.mark.parametrize(
    ("labels", "kind", "shown"),
    [(("cat", "dog"), "string", "'cat'"), ((0.5, 1.0), "float32", r"0\.5"), ((True, False), "bool", "True")],
)
def test_labels_that_are_no_numbers_of_classes(parquet, labels, kind, shown):
    kind = datasets.Value(kind)
    where = parquet(train=table(*labels, kind=kind), validation=table(*labels, kind=kind))
    with pytest.raises(ValueError, match=f"Column 'label' of 'train' of `{where}` has values such as .*") as refusal:
        open_data(where)
    assert re.search(rf"such as .*{shown}.*as `table\.class_encode_column\('label'\)` makes them", str(refusal.value))


def test_missing_labels(parquet):
    with pytest.raises(ValueError, match="Column 'label' of 'train' of"):
        open_data(parquet(train=table(0, None), validation=table(0)))


@pytest.mark.parametrize(
    ("columns", "missing"),
    [({"file": ["x"], "label": [0]}, "pictures"), ({"image": [{"bytes": png(1), "path": "x"}], "n": [0]}, "labels")],
)
def test_tables_without_pictures_or_labels(parquet, columns, missing):
    where = parquet(train=pa.table(columns), validation=pa.table(columns))
    listed = ", ".join(map(repr, columns))
    message = f"'train' of `{where}` has the columns {listed}, none of them {missing}; name it 'image', 'label'"
    with pytest.raises(ValueError, match=message):
        open_data(where)


@pytest.mark.parametrize("name", ("train", "validation", "test"))
def test_tables_of_one_part(parquet, name):
    where = parquet(**{name: table(0)})
    with pytest.raises(ValueError, match=f"`{where}` has '{name}'; expected 'train' and one of 'validation', 'valid',"):
        open_data(where)


@pytest.mark.parametrize("name", ("train", "validation"))
def test_tables_without_rows(parquet, name):
    where = parquet(**{"train": table(0), "validation": table(0)} | {name: table()})
    with pytest.raises((FileNotFoundError, ValueError), match=str(where)):
        open_data(where)


@pytest.mark.parametrize("where", ("nobody/nothing", "nothing", Path("nobody/nothing")))
def test_what_is_no_folder_and_not_on_the_hub(where):
    with pytest.raises(
        FileNotFoundError, match=f"`{where}` is no folder here, and no data set that the hub gives: "
    ) as refusal:
        open_data(where)
    assert "Check the name, the network and your access." in str(refusal.value)
    # It did not even ask.
    assert "OfflineModeIsEnabled" in str(refusal.value)


def test_without_the_library(folder, monkeypatch):
    where = folder("train/cat/0.png", "val/cat/1.png")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"`levitax.data.open_data` needs datasets: run `pip install \"levi"):
        open_data(where)


def test_of_several_columns_of_labels_the_one_of_that_name_is_taken(parquet):
    kinds = {"gender": datasets.ClassLabel(names=["f", "m"]), "age": datasets.ClassLabel(names=["old", "young"])}
    rows = table(0, 1, 2)
    for name, kind in kinds.items():
        rows = rows.add_column(name, [0, 1, 0], feature=kind)
    assert open_data(parquet(train=rows, validation=rows)).classes == ("cat", "dog", "owl")
    rows = rows.remove_columns("label")
    with pytest.raises(
        ValueError, match=r"has several columns of labels, 'gender', 'age'; .* name one of them 'label'"
    ):
        open_data(parquet(train=rows, validation=rows))
