"""Training as pure functions over one PyTree of state. Needs `pip install "levitax[train]"`."""

try:
    from ._evaluate import evaluate as evaluate, Evaluation as Evaluation, predict_logits as predict_logits
    from ._loss import cross_entropy as cross_entropy
    from ._optimizer import adamw as adamw, decay_mask as decay_mask, trainable as trainable
    from ._state import TrainState as TrainState
    from ._step import Loss as Loss, make_step as make_step, Metrics as Metrics
except ModuleNotFoundError as error:
    if error.name != "optax":
        raise
    raise ImportError('`levitax.train` needs optax: run `pip install "levitax[train]"`.') from error
