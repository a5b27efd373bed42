# pyright: reportMissingImports=false
"""The recipe as timm and PyTorch compute it."""

from unittest import mock

import numpy as np
import torch

from . import cases, recipe_cases, references
from .numbers import Arrays


def clipped() -> Arrays:
    """Returns the gradients after timm's adaptive clipping."""
    from timm.utils.agc import adaptive_clip_grad

    parameters, gradients = recipe_cases.parameters_and_gradients()
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in parameters.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.from_numpy(gradients[name])
    adaptive_clip_grad(tensors.values(), clip_factor=recipe_cases.CLIPPING)
    return {f"clipped:{name}": tensor.grad.numpy() for name, tensor in tensors.items()}


def schedules() -> Arrays:
    """Returns the learning rate of each epoch as the official script sets it: by timm's schedule, after the epoch."""
    from timm.scheduler import CosineLRScheduler

    values = {}
    for name, (learning_rate, epochs) in recipe_cases.SCHEDULES.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], learning_rate)
        scheduler = CosineLRScheduler(
            optimizer, t_initial=epochs, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=5, cycle_limit=1
        )
        used, own = [], []
        for epoch in range(epochs):
            used.append(optimizer.param_groups[0]["lr"])
            scheduler.step(epoch)
            own.append(optimizer.param_groups[0]["lr"])
        values |= {f"schedule:{name}:official": np.array(used), f"schedule:{name}": np.array(own)}
    return values


def mixed() -> Arrays:
    """Returns images and smoothed targets after timm's mixing, with fixed numbers in place of random draws."""
    from timm.data import Mixup

    values = {}
    for name, (share, centre) in recipe_cases.MIXING.items():
        images, labels = recipe_cases.mixed()
        draws = mock.Mock(
            rand=mock.Mock(return_value=0.0 if centre else 0.9),
            beta=mock.Mock(return_value=share),
            randint=mock.Mock(side_effect=centre),
        )
        mixup = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=10)
        # timm first draws whether to mix, then how.
        draws.rand.side_effect = [0.0, draws.rand.return_value]
        with mock.patch("numpy.random", draws):
            mixed, targets = mixup(references._nchw(images), torch.from_numpy(labels).long())
        values[f"mixed:{name}:images"] = mixed.numpy().transpose(0, 2, 3, 1)
        values[f"mixed:{name}:targets"] = targets.numpy()
    return values


def distillation_loss(heads, labels, teacher, *, kind: str, alpha: float, temperature: float) -> torch.Tensor:
    """The official loss."""
    F = torch.nn.functional
    base = torch.sum(-labels * F.log_softmax(heads[0], dim=-1), dim=-1).mean()
    if kind == "soft":
        student, other = F.log_softmax(heads[1] / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
        distilled = F.kl_div(student, other, reduction="sum", log_target=True) * temperature**2 / heads[1].numel()
    else:
        distilled = F.cross_entropy(heads[1], teacher.argmax(dim=1))
    return base * (1 - alpha) + distilled * alpha


def distilled() -> Arrays:
    """Returns losses with a teacher, and their gradients with respect to the logits of both heads."""
    values = {}
    for kind, alpha, temperature in (("hard", 0.5, 1.0), ("soft", 0.3, 3.0)):
        *logits, labels = map(torch.from_numpy, recipe_cases.distilled())
        heads = [head.requires_grad_() for head in logits[:2]]
        loss = distillation_loss(heads, labels, logits[2], kind=kind, alpha=alpha, temperature=temperature)
        loss.backward()
        values[f"distilled:{kind}"] = np.array(loss.item())
        for name, head in zip(("classification", "distillation"), heads, strict=True):
            values[f"distilled:{kind}:{name}"] = head.grad.numpy()
    return values


def trained(eps: float) -> tuple[Arrays, Arrays, np.ndarray]:
    """Returns parameters and statistics after steps of the whole recipe, their moving average, and the losses."""
    from timm.optim import param_groups_weight_decay
    from timm.utils import ModelEma
    from timm.utils.agc import adaptive_clip_grad

    height, width = recipe_cases.TRAINING["image_size"]
    model = references.timm(
        "levit_128s",
        cases.Size(height, width, (height, width)),
        distilled=True,
        num_classes=recipe_cases.TRAINING["num_classes"],
        act_layer=recipe_cases.TRAINING["activation"],
    )
    references.fill(model)
    model.set_distilled_training(True)
    groups = param_groups_weight_decay(model, recipe_cases.WEIGHT_DECAY, no_weight_decay_list=model.no_weight_decay())
    optimizer = torch.optim.AdamW(groups, recipe_cases.LEARNING_RATE, eps=eps)
    average = ModelEma(model, recipe_cases.EMA_DECAY)
    model.train()
    losses = []
    for step in range(recipe_cases.STEPS):
        images, labels, teacher = recipe_cases.batch(step)
        targets = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), recipe_cases.TRAINING["num_classes"])
        targets = 0.9 * targets + 0.1 / targets.shape[1]
        optimizer.zero_grad()
        heads = model(references._nchw(images))
        loss = distillation_loss(heads, targets, torch.from_numpy(teacher), kind="hard", alpha=0.5, temperature=1.0)
        loss.backward()
        adaptive_clip_grad(model.parameters(), clip_factor=recipe_cases.CLIPPING)
        optimizer.step()
        average.update(model)
        losses.append(loss.item())
    arrays = [
        {name: value.numpy() for name, value in one.state_dict().items() if value.is_floating_point()}
        for one in (model, average.ema)
    ]
    return arrays[0], arrays[1], np.array(losses)


def augmented() -> Arrays:
    """Returns an image after each of timm's RandAugment operations, at some strengths and both signs."""
    from PIL import Image
    from timm.data import auto_augment

    values = {}
    image = Image.fromarray(recipe_cases.image())
    keywords = {"fillcolor": recipe_cases.FILL, "resample": Image.Resampling.BICUBIC}
    for ours, theirs in recipe_cases.OPERATIONS.items():
        for strength in recipe_cases.STRENGTHS:
            level = auto_augment.LEVEL_TO_ARG[theirs]
            # timm negates the level if a number above one half is drawn.
            with mock.patch("random.random", return_value=0.9 if strength < 0 else 0.1):
                arguments = () if level is None else level(10 * abs(strength), {})
            result = auto_augment.NAME_TO_OP[theirs](image, *arguments, **keywords)
            values[f"augmented:{ours}:{strength}"] = np.asarray(result)
    return values
