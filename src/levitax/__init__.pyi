from . import data as data, export as export, nn as nn, plot as plot, train as train, weights as weights
from ._batched import batched as batched
from ._classifier import Classified as Classified, Classifier as Classifier, Embedded as Embedded
from ._config import LeViTConfig as LeViTConfig, LeViTKeywords as LeViTKeywords, Overrides as Overrides
from ._create import (
    create_model as create_model,
    levit_128 as levit_128,
    levit_128s as levit_128s,
    levit_192 as levit_192,
    levit_256 as levit_256,
    levit_256d as levit_256d,
    levit_384 as levit_384,
    levit_384_s8 as levit_384_s8,
    levit_512 as levit_512,
    levit_512_s8 as levit_512_s8,
    levit_512d as levit_512d,
    list_models as list_models,
)
from ._fuse import fuse as fuse, Predictor as Predictor
from ._model import LeViT as LeViT
from ._parameters import count_parameters as count_parameters
from ._push import push as push
from ._summary import Summary as Summary, summary as summary, SummaryRow as SummaryRow
from ._variants import PRETRAINED as PRETRAINED, VARIANTS as VARIANTS
from .weights import load as load, load_preprocessing as load_preprocessing, save as save

__version__: str
