"""Training as pure functions over one PyTree of state. Needs `pip install "levitax[train]"`."""

try:
    import optax as _optax
except ImportError as error:
    raise ImportError('`levitax.train` needs optax: run `pip install "levitax[train]"`.') from error
del _optax

from ._evaluate import Evaluation as Evaluation, evaluate as evaluate, predict_logits as predict_logits
from ._loss import cross_entropy as cross_entropy
from ._optimizer import adamw as adamw, decay_mask as decay_mask, trainable as trainable
from ._state import TrainState as TrainState
from ._step import Loss as Loss, make_step as make_step, Metrics as Metrics
