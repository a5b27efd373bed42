"""Images to train on and to classify."""

from ._augment import random_affine as random_affine
from ._digits import Digits as Digits, digits as digits
from ._image import (
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    preprocess as preprocess,
    read_image as read_image,
)
