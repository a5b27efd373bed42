"""Images to train on."""

from ._augment import random_affine as random_affine
from ._digits import Digits as Digits, digits as digits
