import re
from typing import Any

import datasets
import datasets.config
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from levitax.data import ImageTable, open_data, Split

from .making import names, numbers, png


CLASSES = datasets.ClassLabel(names=["cat", "dog", "owl"])


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """Uses a temporary cache and makes the Hugging Face hub unreachable."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


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


def table(*labels, kind: Any = CLASSES, image="image", label="label", images=None):
    """Returns a table of images numbered from 0, with labels of the feature type `kind`."""
    images = images or [{"bytes": png(number), "path": f"{number}.png"} for number in range(len(labels))]
    features = datasets.Features({image: datasets.Image(), label: kind})
    return datasets.Dataset.from_dict({image: images, label: list(labels)}, features=features)


@pytest.mark.parametrize("name", ("validation", "test"))
@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "labels"), ("picture", "fine_label")])
def test_parquet_files_with_names_of_classes(parquet, name, image, label):
    columns = {"image": image, "label": label}
    data = open_data(parquet(**{"train": table(2, 0, 1, **columns), name: table(1, **columns)}))
    assert data.classes == ("cat", "dog", "owl")
    assert data.train.labels.tolist() == [2, 0, 1] and data.validation.labels.tolist() == [1]
    assert data.train.labels.dtype == np.int32
    assert numbers(data.train) == [0, 1, 2] and names(data.train) == ["0.png", "1.png", "2.png"]
    assert isinstance(data.train, ImageTable) and isinstance(data.train, Split)


@pytest.mark.parametrize("kind", ("uint8", "int64"))
def test_parquet_files_with_numbers_only(parquet, kind):
    kind = datasets.Value(kind)
    data = open_data(parquet(train=table(0, 2, 1, kind=kind), validation=table(1, kind=kind)))
    assert data.classes == tuple("012")
    assert data.train.labels.tolist() == [0, 2, 1] and data.validation.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ((0, 2), (4,), "go up to 4 .* 3 of these numbers, such as 1, have no training images."),
        ((0, 1), (2,), "go up to 2 .* 1 of these numbers, such as 2, have no training images."),
        ((1, 2), (1,), "go up to 2 .* 1 of these numbers, such as 0, have no training images."),
        ((0, 2**31 - 1), (0,), "go up to 2147483647 .* 2147483646 of these numbers, such as 1, have no .* images."),
    ],
)
def test_numbers_without_images_to_train_on(parquet, train, validation, message):
    kind = datasets.Value("int64")
    with pytest.raises(ValueError, match=f"{message} Number the classes without a gap, as `table.class_encode_column`"):
        open_data(parquet(train=table(*train, kind=kind), validation=table(*validation, kind=kind)))


def test_a_number_that_is_too_large(parquet):
    kind = datasets.Value("int64")
    with pytest.raises(ValueError, match=r"Image 1 of 'train' .* has label 4294967296, and 0 more are out of range"):
        open_data(parquet(train=table(0, 2**32, kind=kind), validation=table(0, kind=kind)))


def test_validation_with_a_class_without_training_images(parquet):
    where = parquet(train=table(0, 1), validation=table(2, 0))
    with pytest.warns(UserWarning, match=f"`{where}` has classes with validation images but .* training images: 'owl'"):
        assert open_data(where).classes == ("cat", "dog", "owl")


def test_classes_in_another_order(parquet):
    other = datasets.ClassLabel(names=["owl", "cat", "dog"])
    data = open_data(parquet(train=table(0, 1, 2), validation=table(0, 1, 2, 0, kind=other)))
    assert data.classes == ("cat", "dog", "owl")
    assert data.train.labels.tolist() == [0, 1, 2] and data.validation.labels.tolist() == [2, 0, 1, 2]
    assert data.validation.labels.dtype == np.int32 and numbers(data.validation) == [0, 1, 2, 3]


@pytest.mark.parametrize("named", ("train", "validation"))
def test_names_of_classes_in_one_split_only(parquet, named):
    kind = datasets.Value("int64")
    tables = {"train": table(0, 1, kind=kind), "validation": table(1, kind=kind)} | {named: table(0, 1)}
    words = {"train": "training", "validation": "validation"}
    with pytest.raises(ValueError, match=f"has class names in {words[named]} .'cat', 'dog', 'owl'., but only numbers"):
        open_data(parquet(**tables))


def test_parquet_files_that_others_wrote(parquet):
    rows = lambda *labels: pa.table({"image": [{"bytes": png(9), "path": None}] * len(labels), "label": labels})
    data = open_data(parquet(train=rows(0, 1), validation=rows(1)), channels=1)
    assert data.classes == ("0", "1") and data.train.read(1).shape == (8, 6, 1)
    assert data.train.name(1) == "image 1"


@pytest.mark.parametrize("image", (None, {"bytes": b"", "path": None}, {"bytes": b"", "path": "gone.png"}))
def test_an_image_missing_from_the_table_is_corrupt(parquet, image):
    whole = {"bytes": png(1), "path": "whole.png"}
    data = open_data(parquet(train=table(0, 1, images=[whole, image]), validation=table(0)))
    assert data.train.read(0)[0, 0, 0] == 1
    with pytest.raises(OSError):
        data.train.read(1)
    assert data.train.name(1) in ("image 1", "gone.png")


def test_a_corrupt_image_is_named(parquet):
    images = [{"bytes": png(0)[:50], "path": "cut.png"}, {"bytes": b"text", "path": None}]
    train = open_data(parquet(train=table(0, 1, images=images), validation=table(0))).train
    for index, name in enumerate(("cut.png", "image 1")):
        with pytest.raises(OSError, match=f"^`{name}` of the table: "):
            train.read(index)


@pytest.mark.parametrize("others", (["cat", "elk", "owl"], ["cat", "dog"], ["cat", "dog", "owl", "elk"]))
def test_tables_of_different_classes_are_refused(parquet, others):
    where = parquet(train=table(0, 1), validation=table(0, 1, kind=datasets.ClassLabel(names=others)))
    with pytest.raises(ValueError, match=f"In `{where}`: validation and training have different classes"):
        open_data(where)


@pytest.mark.parametrize(("part", "name"), [("train", "train"), ("validation", "validation"), ("test", "test")])
def test_negative_labels(parquet, part, name):
    tables = {"train": table(0, 1), part: table(2, -1, 0, -1)}
    where = parquet(**{"validation": table(0)} | tables if part != "test" else tables)
    message = f"Image 1 of '{name}' of `{where}` has label -1, and 1 more are out of range; expected numbers from 0 t"
    with pytest.raises(ValueError, match=f"{message}o 2"):
        open_data(where)


def test_negative_labels_without_names(parquet):
    kind = datasets.Value("int64")
    with pytest.raises(ValueError, match=r"has label -5, and 0 more are out of range; expected numbers from 0\.$"):
        open_data(parquet(train=table(0, -5, kind=kind), validation=table(0, kind=kind)))


def test_labels_beyond_the_classes(parquet):
    # Other programs can write such a table.
    rows = pa.table({"image": [{"bytes": png(1), "path": "x.png"}] * 2, "label": [0, 7]})
    rows = rows.replace_schema_metadata(table(0).features.arrow_schema.metadata)
    where = parquet(train=rows, validation=table(0))
    message = f"Image 1 of 'train' of `{where}` has label 7, and 0 more are out of range; expected numbers from 0 to 2"
    with pytest.raises(ValueError, match=message):
        open_data(where)


@pytest.mark.parametrize(
    ("labels", "kind", "shown"),
    [
        (("cat", "dog"), "string", "'cat'"),
        ((0.5, 1.0), "float32", r"0\.5"),
        ((True, False), "bool", "True"),
        (("0", "1"), "string", "'0'"),
    ],
)
def test_labels_that_are_no_numbers_of_classes(parquet, labels, kind, shown):
    kind = datasets.Value(kind)
    where = parquet(train=table(*labels, kind=kind), validation=table(*labels, kind=kind))
    with pytest.raises(ValueError, match=f"Column 'label' of 'train' of `{where}` has values such as .*") as refusal:
        open_data(where)
    assert re.search(rf"such as .*{shown}.*as `table\.class_encode_column\('label'\)` makes them", str(refusal.value))


def test_several_labels_of_an_image(parquet):
    kind = datasets.Sequence(datasets.Value("int64"), length=2)
    with pytest.raises(ValueError, match=r"Column 'label' of 'train' .* has values such as \[0, 1\]; expected class"):
        open_data(parquet(train=table([0, 1], [1, 0], kind=kind), validation=table([0, 1], kind=kind)))


def test_missing_labels(parquet):
    with pytest.raises(ValueError, match=r"Column 'label' of 'train' of .* has no value in 1 of 2 rows"):
        open_data(parquet(train=table(0, None), validation=table(0)))


@pytest.mark.parametrize(
    ("columns", "missing"),
    [({"file": ["x"], "label": [0]}, "images"), ({"image": [{"bytes": png(1), "path": "x"}], "n": [0]}, "labels")],
)
def test_tables_without_images_or_labels(parquet, columns, missing):
    where = parquet(train=pa.table(columns), validation=pa.table(columns))
    listed = ", ".join(map(repr, columns))
    message = f"'train' of `{where}` has the columns {listed}; expected a column of {missing} "
    with pytest.raises(ValueError, match=message):
        open_data(where)


@pytest.mark.parametrize("name", ("train", "validation", "test"))
def test_tables_of_one_split(parquet, name):
    where = parquet(**{name: table(0)})
    with pytest.raises(ValueError, match=f"`{where}` has '{name}'; expected 'train' and one of 'validation', 'valid',"):
        open_data(where)


@pytest.mark.parametrize("name", ("train", "validation"))
def test_tables_without_rows(parquet, name):
    where = parquet(**{"train": table(0), "validation": table(0)} | {name: table()})
    with pytest.raises((FileNotFoundError, ValueError), match=str(where)):
        open_data(where)


def test_of_several_label_columns_the_one_called_label_is_used(parquet):
    kinds = {"gender": datasets.ClassLabel(names=["f", "m"]), "age": datasets.ClassLabel(names=["old", "young"])}
    rows = table(0, 1, 2)
    for name, kind in kinds.items():
        rows = rows.add_column(name, [0, 1, 0], feature=kind)
    assert open_data(parquet(train=rows, validation=rows)).classes == ("cat", "dog", "owl")
    rows = rows.remove_columns("label")
    with pytest.raises(
        ValueError, match=r"has several columns of labels: 'gender', 'age'; .* name one of them 'label'"
    ):
        open_data(parquet(train=rows, validation=rows))


# The column of images.


def masked(**columns):
    """Returns a table with labels and these columns of images, each in its own colour."""
    images = {name: [{"bytes": png(number), "path": None}] * 2 for number, name in enumerate(columns)}
    features = datasets.Features(columns | {"label": CLASSES})
    return datasets.Dataset.from_dict(images | {"label": [0, 1]}, features=features)


IMAGE = datasets.Image()


@pytest.mark.parametrize(
    ("columns", "number"),
    [
        ({"mask": IMAGE, "image": IMAGE}, 1),
        ({"depth": IMAGE, "mask": IMAGE, "IMG": IMAGE}, 2),
        ({"Photo": IMAGE, "mask": IMAGE}, 0),
        ({"picture": IMAGE, "thumbnail": IMAGE}, 0),
        ({"mask": IMAGE}, 0),
        ({"mask": IMAGE, "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}, 1),
    ],
)
def test_the_column_of_images_is_known_by_its_name(parquet, columns, number):
    assert numbers(open_data(parquet(train=masked(**columns), validation=masked(**columns))).train) == [number] * 2


def test_bytes_are_images_if_their_column_has_the_name_of_one(parquet):
    rows = pa.table({"mask": [b"0"] * 2, "image": [png(5)] * 2, "label": [0, 1]})
    assert numbers(open_data(parquet(train=rows, validation=rows)).train) == [5, 5]


@pytest.mark.parametrize("columns", (("mask", "left"), ("image", "img"), ("image", "Image", "mask")))
def test_several_columns_of_images(parquet, columns):
    rows = masked(**dict.fromkeys(columns, IMAGE))
    named = ", ".join(repr(name) for name in columns if name != "mask" or "left" in columns)
    with pytest.raises(ValueError, match=f"'train' of .* has several columns of images: {named}; keep one"):
        open_data(parquet(train=rows, validation=rows))


def test_several_columns_called_label(parquet):
    rows = table(0, 1, kind=datasets.Value("int64")).add_column("class", [0, 1])
    with pytest.raises(ValueError, match="has several columns of labels: 'label', 'class'; keep one"):
        open_data(parquet(train=rows, validation=rows))


def test_lists_of_images_are_not_images(parquet):
    rows = table(0, 1).remove_columns("image").add_column("images", [["a"], ["b"]])
    with pytest.raises(ValueError, match="has the columns 'label', 'images'; expected a column of images"):
        open_data(parquet(train=rows, validation=rows))


# The files of a split.


@pytest.fixture
def write(tmp_path):
    """Writes tables to paths in a folder."""

    def write(tables):
        for path, rows in tables.items():
            (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(tmp_path / "data" / path)
        return tmp_path / "data"

    return write


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train.parquet", "val.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("Train/test pictures.parquet", "VAL/train.parquet"),
        ("my_train1.parquet", "my-dev.parquet"),
        ("a [1]*/train.parquet", "a [1]*/valid.parquet"),
    ],
)
def test_where_parquet_files_may_be(write, train, validation):
    data = open_data(write({train: table(2, 0, 1), validation: table(1)}))
    assert data.train.labels.tolist() == [2, 0, 1] and data.validation.labels.tolist() == [1]


def test_all_files_of_a_split_are_loaded(write, tmp_path):
    tables = {f"data/train-{number:05}-of-00003.parquet": table(number) for number in (2, 0, 1)}
    where = write(tables | {"elsewhere.parquet": table(1, 1)})
    (where / "data" / "validation.parquet").symlink_to(where / "elsewhere.parquet")
    (where / "README.md").touch()
    with pytest.warns(UserWarning, match=f"Not loaded from `{where}`: name contains no split, .*.`elsewhere.parquet`."):
        data = open_data(where)
    assert data.train.labels.tolist() == [0, 1, 2] and data.validation.labels.tolist() == [1, 1]


def test_a_parquet_file_that_is_a_broken_link(write):
    where = write({"train.parquet": table(0), "val.parquet": table(0)})
    (where / "train2.parquet").symlink_to("nowhere")
    with pytest.warns(UserWarning, match=rf"Not loaded from `{where}`: broken link \(`train2\.parquet`\)"):
        open_data(where)


@pytest.mark.parametrize("copy", ("train3.parquet", "my_train.parquet", "train.PARQUET"))
def test_a_copy_of_a_table(write, copy):
    tables = {"train.parquet": table(0, 1), copy: table(0, 1), "train2.parquet": table(1, 0), "val.parquet": table(0)}
    where = write(tables)
    with pytest.raises(ValueError, match=r"'train' of .* has the same rows twice: .* are copies. Delete one") as error:
        open_data(where)
    assert "/train.parquet`" in str(error.value) and f"/{copy}`" in str(error.value)


@pytest.mark.parametrize("present", ("02", "0", "12"))
def test_a_file_of_a_series_that_is_missing(write, present):
    tables = {f"train-0000{number}-of-00003.parquet": table(int(number)) for number in present}
    with pytest.raises(
        ValueError, match=f"'train' of .* has {len(present)} files `train-.`, numbered .* out of 3; expected"
    ):
        open_data(write(tables | {"val.parquet": table(0)}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train-00000-of-00002-6f3ebbd1f8dfb7a1", "val"), "numbered 0 out of 2"),
        (("train-00000-of-00002.snappy", "val"), "numbered 0 out of 2"),
        (("train-00000-of-00002", "train-00007-of-00002", "val"), "numbered 0, 7 out of 2"),
        (("train/0000", "train/0002", "val/0000"), "files numbered 0, 2 in `train/`; expected .* without gaps"),
    ],
    ids=str,
)
def test_gaps_in_files_of_a_series(files, message, write):
    with pytest.raises(ValueError, match=f"'train' of .* has .*{message}"):
        open_data(write({f"{name}.parquet": table(number % 3) for number, name in enumerate(files)}))


def test_tables_of_another_kind_are_listed(write):
    folder = write({"train.parquet": table(0), "val/x.parquet": table(0)})
    (folder / "val" / "1.png").write_bytes(png(1))
    (folder / "val" / "more.arrow").touch()
    (folder / "README.md").touch()
    with pytest.warns(UserWarning, match=r"not a parquet file \(`val/more\.arrow`\)\.$"):
        assert numbers(open_data(folder).validation) == [0]


@pytest.mark.parametrize(
    ("kind", "shown"), [("bool", "values of type bool"), ("string", "values of type string")], ids=str
)
def test_files_with_labels_of_several_kinds(write, kind, shown):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    rows = {"image": [{"bytes": png(0), "path": None}], "label": [True if kind == "bool" else "1"]}
    other = datasets.Dataset.from_dict(rows, features=features)
    same = table(0, kind=datasets.Value("int64"))
    with pytest.raises(ValueError, match=f"Column 'label' of 'train' .* has integers in .*, but {shown} in "):
        open_data(write({"train/0000.parquet": same, "train/0001.parquet": other, "val.parquet": same}))


def test_paths_in_a_table_begin_at_its_folder(write, tmp_path, monkeypatch):
    features = {"image": datasets.Value("string"), "label": CLASSES}
    rows = lambda *names: datasets.Dataset.from_dict(
        {"image": list(names), "label": [0] * len(names)}, features=datasets.Features(features)
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rel.png").write_bytes(png(77))
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = write({"train.parquet": rows("rel.png"), "val.parquet": rows("rel.png", "https://host/x.png")})
    (folder / "rel.png").write_bytes(png(66))
    data = open_data(folder)
    assert numbers(data.train) == [66]
    with pytest.raises(ValueError, match="a URL; expected a path"):
        data.validation.read(1)


def test_files_of_two_series(write):
    files = ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002", "val")
    with pytest.raises(ValueError, match=r"'train' of .* has 3 files `train-.`, numbered .* out of 1, 2; expected"):
        open_data(write({f"{file}.parquet": table(0) for file in files}))


def test_files_of_two_data_sets(write):
    files = ("small/train", "full/train", "small/val", "full/val")
    with pytest.raises(ValueError, match=r"has parquet files of 'train' in several folders: '\./full', '\./small'"):
        open_data(write({f"{file}.parquet": table(0) for file in files}))


@pytest.mark.parametrize("kind", (datasets.ClassLabel(names=["dog", "cat", "owl"]), datasets.Value("int64")))
def test_files_of_different_classes(write, kind):
    where = write({"train/0.parquet": table(0), "train/1.parquet": table(0, kind=kind), "val.parquet": table(0)})
    with pytest.raises(
        ValueError, match=f"classes of 'train' of `{where}` are 'cat', 'dog', 'owl' in `{where}/train/0"
    ):
        open_data(where)


def test_parquet_files_in_folders_of_a_split_are_no_classes(write):
    where = write({"train/a/0.parquet": table(0), "val/a/0.parquet": table(0)})
    with pytest.raises(ValueError, match=f"`{where}/train/a` has no images that can be loaded.*`a/0.parquet`"):
        open_data(where)


@pytest.mark.parametrize("damage", ("empty", "cut", "text", "page"))
def test_a_corrupt_file_is_named(write, damage):
    where = write({"train/0.parquet": table(0, 1, 2), "train/1.parquet": table(0, 1, 2), "val.parquet": table(0)})
    path = where / "train/1.parquet"
    whole = path.read_bytes()
    page = b"PAR1" + bytes(200) + whole[204:]
    path.write_bytes({"empty": b"", "cut": whole[:-20], "text": b"text" * 99, "page": page}[damage])
    with pytest.raises(OSError, match=f"`{path}` (of 'train' of .* )?is corrupt"):
        open_data(where)


def test_rows_that_are_not_loaded(write, monkeypatch):
    where = write({"train.parquet": table(0, 1, 2), "val.parquet": table(0)})
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **keywords: load(*args, **keywords).select([0, 1]))
    with pytest.raises(OSError, match=f"`datasets` loaded 2 of the 3 rows of 'train' of `{where}`"):
        open_data(where)


def test_local_files_print_nothing(write, capfd):
    where = write({"train.parquet": table(0, 1), "val.parquet": table(0)})
    capfd.readouterr()
    open_data(where)
    assert capfd.readouterr() == ("", "")
    # Progress bars stay enabled for other code.
    assert not datasets.are_progress_bars_disabled()
