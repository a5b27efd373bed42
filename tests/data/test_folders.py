import os
import pickle
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from levitax.data import ImageFiles, IMAGENET_MEAN, IMAGENET_STD, open_data, Preprocessing, Split

from .making import names, numbers, png


@pytest.fixture
def folder(tmp_path):
    """Makes files in a folder, each image in its own colour. A name that ends in / becomes a folder."""

    def folder(*files):
        for number, file in enumerate(files):
            path = tmp_path / "data" / file
            (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not file.endswith("/"):
                path.write_bytes(b"text" if path.suffix == ".txt" else png(number))
        return tmp_path / "data"

    return folder


def contents(split: Split, classes: tuple[str, ...]) -> dict[int, str]:
    """Returns the class of each image."""
    return dict(zip(numbers(split), [classes[label] for label in split.labels], strict=True))


# Loaded images.


@pytest.mark.parametrize("name", ("val", "validation", "valid", "dev", "test", "VAL", "Test"))
def test_folders_like_those_of_imagenet(folder, name):
    where = folder(
        "train/dog/0.png", "train/cat/1.png", "train/dog/2.png", f"{name}/dog/3.png", f"{name}/cat/4.png", "README.txt"
    )
    data = open_data(where)
    # Classes are numbered in the order of their names.
    assert data.classes == ("cat", "dog")
    assert data.preprocessing == Preprocessing(class_names=("cat", "dog"))
    assert contents(data.train, data.classes) == {0: "dog", 1: "cat", 2: "dog"}
    assert contents(data.validation, data.classes) == {3: "dog", 4: "cat"}
    for split in (data.train, data.validation):
        assert isinstance(split, ImageFiles) and isinstance(split, Split)
        assert split.labels.dtype == np.int32
        assert names(split) == [f"{number}.png" for number in numbers(split)]
        assert all(os.path.isfile(split.name(index)) for index in range(len(split.labels)))
        assert split.read(0).shape == (8, 6, 3) and split.read(0).dtype == np.uint8


def test_no_other_library_is_needed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert open_data(folder("train/cat/0.png", "val/cat/1.png")).classes == ("cat",)


def test_nothing_is_printed(folder, capfd):
    open_data(folder("train/cat/0.png", "val/cat/1.png"))
    assert capfd.readouterr() == ("", "")


def test_a_path_as_a_string_and_in_the_home_folder(folder, monkeypatch):
    where = folder("train/cat/0.png", "val/cat/1.png")
    monkeypatch.setenv("HOME", str(where.parent))
    for spelling in (str(where), f"{where}/", "~/data"):
        assert names(open_data(spelling).train) == ["0.png"]


def test_a_relative_path_survives_a_change_of_folder(folder, monkeypatch):
    monkeypatch.chdir(folder("train/cat/0.png", "val/cat/1.png"))
    train = open_data(".").train
    monkeypatch.chdir("/")
    assert numbers(train) == [0]


def test_a_validation_folder_is_preferred_to_a_test_folder(folder):
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
    assert contents(data.train, classes) == {0: "a9", 1: "a10", 2: "Owl"}


def test_files_are_in_the_order_of_their_paths(folder):
    files = ["b/0.png", "b-c/1.png", "a/z.png", "a/10.png", "a/9.png", "a/B/x.png"]
    where = folder(*(f"{part}/{file}" for part in ("train", "val") for file in files))
    train = open_data(where).train
    assert [os.path.relpath(train.name(index), where / "train") for index in range(len(files))] == sorted(files)


@pytest.mark.parametrize(
    "name",
    (
        *("train", "test", "val", "validation", "train_station", "my test", "__background__", "images", "Boat", "0"),
        *("schön", "犬", "a" * 200, "*", "[x]", "a.b", "x.png", "-", "'", '"', "a\tb", "a\nb", "label"),
    ),
)
def test_a_class_may_have_any_name(folder, name):
    where = folder(f"train/{name}/0.png", "train/boat/1.png", f"val/{name}/2.png", "val/boat/3.png")
    data = open_data(where)
    assert data.classes == tuple(sorted(("boat", name)))
    assert contents(data.train, data.classes) == {0: name, 1: "boat"}
    assert contents(data.validation, data.classes) == {2: name, 3: "boat"}


@pytest.mark.parametrize("name", ("train_0", "val_0", "test", "ILSVRC2012_val_00000001", "schön", "*", "a\nb", "__x__"))
def test_an_image_may_have_any_name(folder, name):
    data = open_data(folder(f"train/cat/{name}.png", "train/cat/x.png", f"test/cat/{name}.png", "test/cat/x.png"))
    assert sorted(numbers(data.train)) == [0, 1] and sorted(numbers(data.validation)) == [2, 3]


@pytest.mark.parametrize("suffix", (".avif", ".mpo", ".qoi", ".webp", ".tif", ".JPEG", ".Png", ".jp2", ".bmp", ".ppm"))
def test_any_format_that_pillow_reads(folder, suffix):
    where = folder(*(f"{part}/{name}/0.png" for part in ("train", "val") for name in ("cat", "dog")))
    Image.init()
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        pytest.skip(f"This Pillow does not write {suffix}.")
    for part in ("train", "val"):
        (where / part / "dog" / "0.png").unlink()
        Image.fromarray(np.full((8, 6, 3), 200, np.uint8)).save(where / part / "dog" / f"1{suffix}")
    data = open_data(where)
    assert data.classes == ("cat", "dog") and data.train.labels.tolist() == [0, 1]
    np.testing.assert_allclose(data.train.read(1), 200, atol=3)


def test_folders_in_class_folders(folder):
    files = ("cat/0.png", "cat/more/1.png", "dog/a/b/c/2.png", "dog/images/3.png")
    data = open_data(folder(*(f"{part}/{file}" for part in ("train", "val") for file in files)))
    assert contents(data.train, data.classes) == {0: "cat", 1: "cat", 2: "dog", 3: "dog"}


def test_links(folder, tmp_path):
    where = folder("train/cat/0.png", "val/cat/1.png", "../elsewhere/2.png", "../elsewhere/deep/3.png", "../4.png")
    for part in ("train", "val"):
        (where / part / "dog").symlink_to(tmp_path / "elsewhere")
        (where / part / "cat" / "file.png").symlink_to("../../../4.png")
        (where / part / "cat" / "folder").symlink_to(tmp_path / "elsewhere" / "deep")
    data = open_data(where)
    assert data.classes == ("cat", "dog")
    assert sorted(zip(numbers(data.train), data.train.labels.tolist(), strict=True)) == [
        *((0, 0), (2, 1), (3, 0), (3, 1), (4, 0))
    ]


def test_splits_that_are_links(folder, tmp_path):
    where = folder("../images/cat/0.png", "../other/cat/1.png", "x/")
    (where / "train").symlink_to(tmp_path / "images")
    (where / "val").symlink_to(tmp_path / "other")
    data = open_data(where)
    assert (numbers(data.train), numbers(data.validation)) == ([0], [1])


def test_names_that_are_not_text(folder):
    where = folder("train/cat/0.png", "val/cat/1.png")
    odd = os.fsencode(where / "train" / "cat") + b"/caf\xe9\n.png"
    with open(odd, "wb") as file:
        file.write(png(7))
    train = pickle.loads(pickle.dumps(open_data(where).train))
    assert numbers(train) == [0, 7]
    assert names(train)[1] == r"caf\xe9\n.png"
    assert train.name(1).isprintable()


def test_tiny_imagenet(folder):
    where = folder(
        *("train/n02/images/n02_0.JPEG", "train/n01/images/n01_0.JPEG", "train/n01/images/n01_1.JPEG"),
        *("train/n01/n01_boxes.txt", "train/n02/n02_boxes.txt", "val/images/val_0.JPEG", "val/images/val_1.JPEG"),
        *("val/images/val_2.JPEG", "test/images/test_0.JPEG", "wnids.txt", "words.txt"),
    )
    rows = ["val_0.JPEG\tn02\t0\t32\t44\t62", "val_1.JPEG\tn01\t52\t55\t57\t59", "val_2.JPEG\tn02\t4\t0\t60\t55"]
    (where / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    data = open_data(where)
    assert data.classes == ("n01", "n02")
    assert contents(data.train, data.classes) == {0: "n02", 1: "n01", 2: "n01"}
    assert contents(data.validation, data.classes) == {5: "n02", 6: "n01", 7: "n02"}
    # The warning lists rows without an image and images without a row.
    (where / "val" / "val_annotations.txt").write_text("\n".join([*rows[1:], "val_9.JPEG\tn01"]))
    with pytest.warns(UserWarning) as caught:
        data = open_data(where)
    assert contents(data.validation, data.classes) == {6: "n01", 7: "n02"}
    (message,) = map(str, [warning.message for warning in caught])
    assert "not listed in `val_annotations.txt` (`images/val_0.JPEG`)" in message
    assert "missing, but listed in `val_annotations.txt` (`images/val_9.JPEG`)" in message


@pytest.mark.parametrize("row", ("val_0.JPEG n01", "val_0.JPEG", "val_1.JPEG\tn02"))
def test_a_row_of_tiny_imagenet_without_a_class(folder, row):
    where = folder(
        "train/n01/images/0.JPEG", "train/n02/images/0.JPEG", "val/images/val_0.JPEG", "val/images/val_1.JPEG"
    )
    (where / "val" / "val_annotations.txt").write_text(f"val_1.JPEG\tn01\n\n{row}\n")
    with pytest.raises(ValueError, match=r"Line 3 of `.*/val/val_annotations\.txt` is '.*'; expected the name of an"):
        open_data(where)


@pytest.mark.parametrize("channels", (1, 3))
def test_images_are_read_in_grey_or_in_colour(folder, channels):
    data = open_data(folder("train/cat/0.png", "val/cat/1.png"), channels=channels)
    assert data.preprocessing.channels == channels
    assert data.validation.read(0).shape == (8, 6, channels)
    if channels == 1:
        # Averaged over the colours.
        np.testing.assert_allclose(data.preprocessing.mean, [np.mean(IMAGENET_MEAN)])
        np.testing.assert_allclose(data.preprocessing.std, [np.mean(IMAGENET_STD)])


@pytest.mark.parametrize("content", (b"", png(1)[:50], b"text"))
def test_a_corrupt_image_is_refused_only_when_it_is_read(folder, content):
    where = folder("train/cat/0.png", "train/cat/1.png", "val/cat/2.png")
    (where / "train/cat/1.png").write_bytes(content)
    train = open_data(where).train
    assert names(train) == ["0.png", "1.png"] and train.read(0)[0, 0, 0] == 0
    with pytest.raises(OSError, match=r"train/cat/1\.png"):
        train.read(1)


def test_a_split_goes_to_workers_in_few_bytes(folder):
    where = folder("train/cat/0.png", "val/cat/1.png")
    for number in range(2000):
        (where / "train" / "cat" / f"{number:05}.png").touch()
    train = open_data(where).train
    assert len(pickle.dumps(train)) < 40 * len(train.labels)


# Files that a warning lists as not loaded.


def left_out(message: str) -> dict[str, str]:
    """Returns the reason for each path in a warning."""
    found = {}
    for reason, paths in re.findall(r"(?:: |; )([^;:]+?) \(((?:`[^`]*`,? ?)+(?:and \d+ more)?)\)", message):
        found |= dict.fromkeys(re.findall("`([^`]*)`", paths), reason)
    return found


def open_with_warnings(where, **keywords):
    """Returns the data set, and the paths that warnings list as not loaded, by split."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_data(where, **keywords)
    messages = [str(warning.message) for warning in caught]
    return data, {re.match("Not loaded from `(.*?)`", message)[1]: left_out(message) for message in messages}  # pyright: ignore[reportOptionalSubscript]


def test_every_path_that_is_not_loaded_is_listed(folder, tmp_path):
    where = folder(
        *("train/cat/0.png", "train/cat/1.heic", "train/cat/notes.txt", "train/cat/.2.png", "train/cat/.more/3.png"),
        *(
            "train/.ipynb_checkpoints/0-checkpoint.png",
            "train/4.png",
            "train/cat/5",
            "train/cat/6.zip",
            "val/cat/7.png",
        ),
        *("train/metadata.csv", "train/cat/8.pdf", "train/cat/9.h5", "train/cat/10.mpg"),
    )
    (where / "train/cat/11.png").symlink_to("nowhere.png")
    (where / "train/cat/loop").symlink_to("../..")
    (where / "train/cat/itself").symlink_to("itself")
    os.mkfifo(where / "train/cat/pipe.png")
    data, listed = open_with_warnings(where)
    assert numbers(data.train) == [0] and numbers(data.validation) == [9]
    suffix = "suffix of an unsupported format"
    assert listed == {
        str(where / "train"): {
            "cat/1.heic": suffix,
            "cat/notes.txt": suffix,
            "cat/5": suffix,
            "cat/6.zip": suffix,
            "cat/8.pdf": suffix,
            "cat/9.h5": suffix,
            "cat/10.mpg": suffix,
            "metadata.csv": suffix,
            "cat/.2.png": "hidden",
            "cat/.more": "hidden",
            ".ipynb_checkpoints": "hidden",
            "4.png": "in no class folder",
            "cat/11.png": "broken link",
            "cat/loop": "link to a folder that contains it",
            "cat/itself": "unreadable (Too many levels of symbolic links)",
            "cat/pipe.png": "neither file nor folder",
        }
    }


def test_a_file_without_a_suffix_is_no_image(folder, monkeypatch):
    where = folder("train/cat/0.png", "train/cat/1", "val/cat/2.png")
    # Pillow does this when it saves a SPIDER image to memory.
    monkeypatch.setitem(Image.registered_extensions(), "", "PNG")
    data, listed = open_with_warnings(where)
    assert numbers(data.train) == [0]
    assert listed == {str(where / "train"): {"cat/1": "suffix of an unsupported format"}}


def test_a_long_list_shows_the_first_paths_and_every_suffix(folder):
    where = folder("train/cat/0.png", "val/cat/1.png")
    for number in range(1000):
        (where / "train" / "cat" / f"{number:03}.heic").touch()
    (where / "train" / "cat" / "z.jxl").touch()
    with pytest.warns(UserWarning, match="Not loaded from `.*/train`: ") as caught:
        open_data(where)
    message = str(caught[0].message)
    assert "(`cat/000.heic`, `cat/z.jxl`, `cat/001.heic`, " in message and "and 981 more)" in message
    assert len(message) < 600 and "as PNG or JPEG" in message


def test_a_folder_that_may_not_be_read(folder, monkeypatch):
    where = folder("train/cat/0.png", "train/cat/locked/1.png", "val/cat/2.png")
    scan = os.scandir

    def refuses(path):
        if os.path.basename(path) == b"locked":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuses)
    _, listed = open_with_warnings(where)
    assert listed == {str(where / "train"): {"cat/locked": "unreadable (Permission denied)"}}


def test_a_plugin_of_pillow_adds_its_suffix(folder, monkeypatch):
    where = folder("train/cat/0.png", "train/cat/1.heic", "val/cat/2.png")
    Image.init()
    for registry, name, value in ((Image.OPEN, "HEIF", (None, None)), (Image.EXTENSION, ".heic", "HEIF")):
        monkeypatch.setitem(registry, name, value)
    assert names(open_data(where).train) == ["0.png", "1.heic"]


def test_one_class_of_several_folders(folder):
    where = folder(*(f"{part}/images/{name}/0.png" for part in ("train", "val") for name in ("cat", "dog")))
    with pytest.warns(UserWarning, match="has one class, 'images', whose images are in several folders: ") as caught:
        assert open_data(where).classes == ("images",)
    assert len(caught) == 2 and "'images/cat', 'images/dog'. If those folders are the" in str(caught[0].message)


def test_parquet_files_next_to_class_folders(folder):
    where = folder("train/cat/0.png", "val/cat/1.png", "metadata.parquet", "train/train.parquet")
    with pytest.warns(UserWarning) as caught:
        assert open_data(where).classes == ("cat",)
    inside, outside = (str(warning.message) for warning in caught)
    assert "(`train.parquet`)" in inside and "'metadata.parquet', because the images are in class folders" in outside


@pytest.mark.parametrize("seed", range(40))
def test_every_file_on_disk_is_loaded_or_listed(tmp_path, seed):
    rng = np.random.default_rng(seed)
    train = plant(tmp_path, rng)
    data, listed = open_with_warnings(tmp_path)
    listed = listed.get(str(train), {})
    found = {data.train.name(index): data.classes[label] for index, label in enumerate(data.train.labels)}
    assert len(found) == len(data.train.labels)
    expected, reasons = look(train)
    assert found == {shown(train / path): path.parts[0] for path in expected}
    expected_left_out = {shown(path): reason for path, reason in reasons.items()}
    assert listed.items() <= expected_left_out.items()
    # Beyond twenty of a kind, the warning only counts.
    assert len(listed) == sum(min(count, 20) for count in Counter(reasons.values()).values())
    # Every image that is loaded can be read.
    assert all(data.train.read(index).shape == (8, 6, 3) for index in range(len(data.train.labels)))


def plant(where: Path, rng: np.random.Generator) -> Path:
    """Makes a random tree of two or more classes with links, loops, deep folders, odd names, hidden and empty files."""
    stems = ["0", "a b", "ü", "x.tar", os.fsdecode(b"\xff\xfe"), "new\nline", "[*]", "train", ".hidden", "-", "犬"]
    suffixes = [".png", ".PNG", ".jpg", ".Jpeg", ".webp", ".bmp", ".heic", ".txt", "", ".zip", ".pdf", ".png.part"]
    train = where / "train"
    classes = [train / name for name in ("cat", "__background__", "val")]
    outside = where / "outside"
    folders = [*classes, train, outside]
    for path in (*classes, outside, *(where / "val" / path.name for path in classes)):
        path.mkdir(parents=True)
    for path in classes:
        (path / "first.png").write_bytes(png(1))
        (where / "val" / path.name / "first.png").write_bytes(png(1))
    for number in range(rng.integers(4, 30)):
        folder = folders[rng.integers(len(folders))]
        name = f"{stems[rng.integers(len(stems))]}{number}"
        path = folder / (name + suffixes[rng.integers(len(suffixes))])
        match rng.integers(8):
            case 0 if folder != train:
                (folder / name).mkdir()
                folders.append(folder / name)
            case 1 if folder != train:
                (folder / name).symlink_to(folders[rng.integers(len(folders))])
            case 2 if folder != train:
                path.symlink_to("nowhere" if rng.integers(2) else path.name)
            case 3:
                path.symlink_to(classes[0] / "first.png")
            case _:
                path.write_bytes(png(2))
    return train


def look(train: Path) -> tuple[set[Path], dict[Path, str]]:
    """Returns the images below a folder, and the reason for every other path, independently of the code under test."""
    images, reasons, pending = set(), {}, [(train, [train])]
    while pending:
        folder, above = pending.pop()
        for name in os.listdir(folder):
            path = folder / name
            relative = path.relative_to(train)
            if name.startswith("."):
                reasons[relative] = "hidden"
            elif not os.path.exists(path):
                itself = os.path.islink(path) and os.readlink(path) == name
                broken = "unreadable (Too many levels of symbolic links)" if itself else "broken link"
                reasons[relative] = broken
            elif path.is_dir():
                if path.is_symlink() and any(each.resolve().is_relative_to(path.resolve()) for each in above):
                    reasons[relative] = "link to a folder that contains it"
                else:
                    pending.append((path, [*above, path]))
            elif path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
                reasons[relative] = "suffix of an unsupported format"
            elif folder == train:
                reasons[relative] = "in no class folder"
            else:
                images.add(relative)
    return images, reasons


def shown(path: Path) -> str:
    text = bytes(path).decode(errors="backslashreplace")
    return text.replace("\n", r"\n")


# Refused folders.


@pytest.mark.parametrize(
    ("files", "there"),
    [
        (("train/cat/0.png",), "'train/'"),
        (("train/cat/0.png", "training/cat/0.png"), "'train/', 'training/'"),
        (("val/cat/0.png",), "'val/'"),
        (("cat/0.png", "dog/1.png"), "'cat/', 'dog/'"),
        (("0.png",), "'0.png'"),
        (("train.zip", "val/cat/0.png"), "'train.zip', 'val/'"),
        (("train", "val/cat/0.png"), "'train', 'val/'"),
    ],
)
def test_nothing_to_train_on_or_to_validate_with(folder, files, there):
    where = folder(*files)
    with pytest.raises(
        ValueError, match=f"`{where}` has {there}; expected 'train' and one of 'validation', 'valid', 'val', 'dev', 'te"
    ):
        open_data(where)


def test_a_split_that_is_a_broken_link(folder):
    where = folder("val/cat/0.png")
    (where / "train").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"has 'train \(broken link\)', 'val/'; expected 'train' and one of"):
        open_data(where)


def test_two_splits_to_validate_with(folder):
    where = folder("train/cat/0.png", "val/cat/1.png", "validation/cat/2.png", "test/cat/3.png")
    with pytest.raises(
        ValueError, match=f"`{where}` has 'validation', 'val', 'test'; expected one of them to validate"
    ):
        open_data(where)


def test_two_splits_that_differ_in_case(folder):
    where = folder("train/cat/0.png", "Train/cat/1.png", "val/cat/2.png")
    if len(os.listdir(where)) < 3:
        pytest.skip("This file system ignores case.")
    with pytest.raises(ValueError, match=f"`{where}/Train` and `{where}/train` differ only in case"):
        open_data(where)


@pytest.mark.parametrize("part", ("train", "val"))
@pytest.mark.parametrize(
    ("content", "there"),
    [
        ((), r"It is empty\."),
        (("notes.txt",), r"It contains only: suffix of an unsupported format \(`dog/notes\.txt`\)\."),
        ((".1.png", "2.zip"), r"only: hidden \(`dog/\.1\.png`\); suffix of an unsupported format \(`dog/2\.zip`\)\."),
        ((".ipynb_checkpoints/3.png",), r"only: hidden \(`dog/\.ipynb_checkpoints`\)\."),
        (("more/",), r"It is empty\."),
    ],
)
def test_a_class_without_images(folder, part, content, there):
    files = [f"{part}/dog/{file}" for file in content or ("",)]
    other = {"train": "val", "val": "train"}[part]
    where = folder("train/cat/0.png", "val/cat/1.png", f"{other}/dog/2.png", *files)
    with pytest.raises(
        ValueError, match=f"`{where}/{part}/dog` has no images that can be loaded. .*{there} Add images"
    ):
        open_data(where)


def test_classes_without_images_in_both_splits(folder):
    where = folder("train/cat/0.png", "val/cat/1.png", "train/dog/notes.txt", "val/dog/notes.txt", "train/owl/x.txt")
    with pytest.raises(ValueError, match=f"`{where}/train/dog` has no images .*The same holds for 1 more of the"):
        open_data(where)


def test_a_class_that_is_a_broken_link(folder):
    where = folder("train/cat/0.png", "val/cat/1.png")
    for part in ("train", "val"):
        (where / part / "dog").symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"`{where}/train/dog` is a broken link, which may be a class: repair or"):
        open_data(where)


def test_a_class_whose_name_is_not_text(folder):
    where = folder("train/cat/0.png", "val/cat/1.png")
    for part in ("train", "val"):
        odd = os.fsencode(where / part) + b"/caf\xe9"
        os.mkdir(odd)
        with open(odd + b"/0.png", "wb") as file:
            file.write(png(0))
    with pytest.raises(ValueError, match=r"The class name `caf\\xe9` in `.*train` is not UTF-8, .* Rename the class"):
        open_data(where)


@pytest.mark.parametrize("part", ("train", "val"))
def test_images_without_classes(folder, part):
    other = {"train": "val", "val": "train"}[part]
    where = folder(f"{part}/0.png", f"{part}/metadata.csv", f"{other}/cat/2.png")
    with pytest.raises(
        ValueError, match=f"`{where}/{part}` has no class folders; .* in no class folder .`0.png`.; .*csv"
    ):
        open_data(where)


def test_folders_of_different_classes_are_named(folder):
    where = folder("train/cat/0.png", "train/dog/1.png", "train/owl/1.png", "val/cat/2.png", "val/elk/3.png")
    with pytest.raises(ValueError, match=f"In `{where}`: validation and training have different classes: ") as refusal:
        open_data(where)
    assert "only in validation 'elk', only in training 'dog', 'owl'. The same label would" in str(refusal.value)


def test_a_class_that_validation_lacks(folder):
    where = folder("train/cat/0.png", "train/dog/1.png", "val/cat/2.png")
    with pytest.raises(ValueError, match="only in validation none, only in training 'dog'"):
        open_data(where)


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_look_alike(folder, one, other):
    where = folder(f"train/{one}/0.png", f"val/{other}/1.png")
    with pytest.raises(ValueError, match="differ only in case or in Unicode normalisation"):
        open_data(where)
