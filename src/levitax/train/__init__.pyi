from ._affine import random_affine as random_affine
from ._checkpoint import Best as Best, Checkpoints as Checkpoints, Restored as Restored
from ._erase import random_erase as random_erase
from ._evaluate import (
    EvalBatch as EvalBatch,
    evaluate as evaluate,
    evaluate_batches as evaluate_batches,
    Evaluation as Evaluation,
    predict_logits as predict_logits,
)
from ._fit import fit as fit, Fitted as Fitted
from ._layer_groups import (
    layer_groups as layer_groups,
    LayerGroups as LayerGroups,
    scale_by_layer as scale_by_layer,
)
from ._loss import (
    cross_entropy as cross_entropy,
    distillation_loss as distillation_loss,
    Loss as Loss,
    TeacherTargets as TeacherTargets,
)
from ._mesh import (
    gather_local as gather_local,
    make_mesh as make_mesh,
    replicate as replicate,
    shard_batch as shard_batch,
    start_distributed as start_distributed,
)
from ._mixing import cutmix as cutmix, mix as mix, mixup as mixup
from ._optimizer import (
    adamw as adamw,
    adaptive_grad_clip as adaptive_grad_clip,
    decay_mask as decay_mask,
    freeze_norms as freeze_norms,
    head_only as head_only,
    Parameters as Parameters,
    trainable as trainable,
    warmup_cosine as warmup_cosine,
)
from ._preemption import Preemption as Preemption
from ._prepare import prepare as prepare
from ._recipe import Recipe as Recipe, RECIPES as RECIPES
from ._splits import evaluate_split as evaluate_split, predict_split as predict_split
from ._state import TrainState as TrainState
from ._step import make_step as make_step, Metrics as Metrics, Step as Step
from ._suggest import suggest as suggest, Suggestion as Suggestion
from ._targets import one_hot as one_hot
from ._teacher import load_teacher as load_teacher, Teacher as Teacher, torch_teacher as torch_teacher
from ._teacher_logits import TeacherLogits as TeacherLogits
