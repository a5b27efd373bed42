"""Reads, preprocesses, augments and batches images. Needs `pip install "levitax[data]"`."""

from ._digits import Digits as Digits, digits as digits
from ._folders import ImageFiles as ImageFiles
from ._hold_out import hold_out as hold_out
from ._image import read_image as read_image
from ._loader import (
    Batch as Batch,
    eval_batches as eval_batches,
    Shard as Shard,
    steps_per_epoch as steps_per_epoch,
    train_batches as train_batches,
)
from ._open import open_data as open_data
from ._preprocessing import (
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    Interpolation as Interpolation,
    Preprocessing as Preprocessing,
)
from ._rand_augment import rand_augment as rand_augment
from ._sets import (
    Arrays as Arrays,
    DataSet as DataSet,
    match_classes as match_classes,
    Relabelled as Relabelled,
    Split as Split,
    Subset as Subset,
)
from ._tables import ImageTable as ImageTable
from ._transforms import TrainTransform as TrainTransform, Transform as Transform
