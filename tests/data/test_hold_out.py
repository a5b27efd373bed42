"""Data sets with one split, of which a share is to validate with."""

import numpy as np
import pytest
from PIL import Image

from levitax.data import Arrays, hold_out, open_data

from .making import numbers, png


def of_labels(*labels: int) -> Arrays:
    return Arrays(np.zeros((len(labels), 2, 2, 1), np.uint8), np.array(labels, np.int32))


def test_each_class_gives_its_share():
    split = of_labels(*([0] * 10 + [1] * 5 + [2] * 3 + [3] * 2 + [4]))
    train, validation = hold_out(split, 0.4)
    assert np.bincount(validation.labels, minlength=5).tolist() == [4, 2, 1, 1, 0]
    assert sorted([*train.indices, *validation.indices]) == list(range(21))
    for part in (train, validation):
        assert (np.diff(part.indices) > 0).all()


def test_the_seed_draws_the_images():
    split = of_labels(*([0, 1] * 50))
    of_seed = lambda seed: hold_out(split, 0.2, seed=seed)[1].indices.tolist()
    assert of_seed(0) == of_seed(0) != of_seed(1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("share", (0, 1, 1.5, -0.2, float("nan"), True, "half", None))
def test_a_share_that_leaves_nothing(share, tmp_path):
    with pytest.raises(ValueError, match=r"`share` is .*; expected a number between 0 and 1, such as 0.2"):
        hold_out(of_labels(0, 0), share)
    if share is not None:
        with pytest.raises(ValueError, match=r"`validation_share` is .*; expected a number between 0 and 1"):
            open_data(tmp_path, validation_share=share)


def test_classes_of_one_image_each():
    train, validation = hold_out(of_labels(0, 1, 2), 0.5)
    assert train.indices.tolist() == [0, 1, 2] and len(validation.labels) == 0


@pytest.fixture
def files(tmp_path):
    def files(*names: str):
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(png(number))
        return tmp_path

    return files


CLASSES = [f"{name}/{number}.png" for name in ("ant", "bee") for number in range(5)]


@pytest.mark.parametrize("names", (CLASSES, [f"Train/{name}" for name in CLASSES]), ids=("classes", "train alone"))
def test_a_folder_without_images_to_validate_with(files, names):
    where = files(*names)
    data = open_data(where, validation_share=0.2, seed=3)
    assert data.classes == ("ant", "bee")
    assert len(data.train.labels) == 8 and data.validation.labels.tolist() == [0, 1]
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(10))
    assert [label for label in data.validation.labels] == [number // 5 for number in numbers(data.validation)]


def test_a_share_changes_nothing_where_there_is_a_split_to_validate_with(files):
    where = files("train/ant/0.png", "train/bee/1.png", "val/ant/2.png", "val/bee/3.png")
    data = open_data(where, validation_share=0.5)
    assert numbers(data.train) == [0, 1] and numbers(data.validation) == [2, 3]


def test_splits_under_other_names_are_not_taken_for_classes(files):
    where = files("training/ant/0.png", "training/bee/1.png", "holdout/ant/2.png", "holdout/bee/3.png")
    with pytest.raises(ValueError, match=r"'holdout', 'training', all have the same folders.*`train` and `val`"):
        open_data(where, validation_share=0.2)


@pytest.mark.parametrize(
    ("names", "split"), [(["train/0.png", "car/1.png"], "train"), (["car/0.png", "test/1.png"], "test")]
)
def test_a_class_with_the_name_of_a_split(files, names, split):
    with pytest.raises(ValueError, match=rf"has '{split}/', the name of a split, .* If it is a class, rename it"):
        open_data(files(*names), validation_share=0.2)


def test_a_table_without_images_to_validate_with(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(np.full((4, 4, 3), number, np.uint8)) for number in range(10)]
    table = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1] * 5},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}),
    )
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    data = open_data(tmp_path, validation_share=0.2)
    assert data.classes == ("a", "b") and len(data.validation.labels) == 2
    with pytest.raises(ValueError, match=r"pass `validation_share=0.2`"):
        open_data(tmp_path)
