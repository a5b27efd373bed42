import numpy as np
import pytest

import levitax
from levitax.data import Arrays, DataSet, Preprocessing
from levitax.train import RECIPES, suggest
from levitax.train._suggest import sample, small_model, SMALL_MODELS


class Many:
    """A split of as many equal images as it is said to have."""

    def __init__(self, images: int, height: int, width: int, channels: int = 3):
        self.labels = np.zeros(images, np.int32)
        self._image = np.zeros((height, width, channels), np.uint8)

    def read(self, index: int) -> np.ndarray:
        return self._image

    def name(self, index: int) -> str:
        return f"image {index}"


def suggested(*sizes: int):
    split = Many(*sizes)
    return suggest(DataSet(split, split, Preprocessing()))


def test_small_images_train_a_small_model_at_their_size():
    for images in (50, 8_000, 300_000):
        found = suggested(images, 28, 40)
        assert (found.model, found.preset, found.recipe, found.pretrained) == ("small", "small", RECIPES["small"], None)
        assert found.keywords["image_size"] == 28 and found.crop_ratio == 1
        assert found.reason == f"{images:,} images of about 28 pixels"


def test_photographs_are_for_published_weights_or_else_a_small_model():
    found = suggested(8_000, 500, 375)
    assert found.pretrained in levitax.PRETRAINED.values()
    assert found.model == "small" and found.keywords["image_size"] == 128
    assert found.recipe.crop_scale == (0.35, 1.0)


def test_many_photographs_are_trained_as_in_the_paper():
    found = suggested(1_281_167, 500, 375)
    assert (found.model, found.preset, found.recipe) == ("levit_256", "paper", RECIPES["paper"])
    assert found.keywords == levitax.VARIANTS["levit_256"] and found.pretrained is None


@pytest.mark.parametrize("name", SMALL_MODELS)
@pytest.mark.parametrize("size", (1, 8, 28, 33, 48, 49, 80, 128, 200))
def test_a_small_model_takes_any_size(name, size):
    config = levitax.LeViTConfig(**small_model(name, size))
    assert size <= config.image_size[0] < size + 64
    assert config.grid(0)[0] <= 13


def test_a_sample_shows_the_size_and_whether_images_are_grey():
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (5, 9, 7, 1), np.uint8), 3, axis=-1)
    assert sample(Arrays(grey, np.zeros(5, np.int32))) == (7, True)
    assert sample(Arrays(grey[..., :1], np.zeros(5, np.int32))) == (7, True)
    grey[3, 0, 0, 1] += 1
    assert sample(Arrays(grey, np.zeros(5, np.int32))) == (7, False)


def test_a_sample_passes_over_images_that_cannot_be_read():
    class Corrupt(Many):
        def read(self, index: int) -> np.ndarray:
            if index % 2 or self.labels[index]:
                raise OSError(f"{self.name(index)} cannot be read")
            return super().read(index)

    split = Corrupt(100, 8, 8)
    assert sample(split).size == 8
    split.labels += 1
    with pytest.raises(OSError, match=r"image \d+ cannot be read"):
        sample(split)
