"""Inputs for the parts of the recipe that levitax and the references both compute."""

from typing import Any

import numpy as np

from . import cases, numbers
from .numbers import Arrays


# For each PyTorch parameter name: its shape, and the size of its gradient relative to it.
CLIPPED = {
    "convolution": ((8, 3, 3, 3), 0.05),
    "linear": ((6, 10), 0.02),
    "small_gradient": ((6, 10), 0.005),
    "table": ((4, 9), 0.1),
    "vector": ((7,), 0.03),
    "one_unit": ((1, 5), 0.05),
    "one_input": ((5, 1), 0.05),
    "zeros": ((12,), 1.0),
}
CLIPPING = 0.01

# Base learning rate and length of a schedule, with the official warm-up and end.
SCHEDULES = {"paper": (2e-3, 1000), "short": (5e-4, 12)}

# Share of the first image and centre of the box (row, column), in images of 32x24.
MIXING = {"mixup": (0.3, None), "cutmix": (0.6, (12, 9)), "cutmix_at_the_border": (0.35, (1, 22))}
MIXED_SIZE = (32, 24)

STEPS = 20
TRAINING: dict[str, Any] = cases.TIMM_TRAINING
# At 5e-4, the losses of PyTorch in float32 and float64 differ by 1.2e-4 within the twenty steps. At this learning rate
# they differ by at most 7e-7.
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.025
EMA_DECAY = 0.9
# Some gradients are zero except for rounding, for example that of a bias before a normalisation. Adam's eps decides the
# size of their steps. With the recipe's eps, the running means of PyTorch in float32 and float64 differ by 2.0e-3
# within the twenty steps, losses by at most 7e-7 and variances by at most 8.5e-5. With the larger eps, all of them
# differ by at most 2e-5.
EPS = {"recipe": 1e-8, "larger": 1e-5}


def parameters_and_gradients() -> tuple[Arrays, Arrays]:
    """Returns the parameters and gradients to clip."""
    parameters = {name: numbers.uniform(f"parameter-{name}", shape) for name, (shape, _) in CLIPPED.items()}
    parameters["zeros"] = np.zeros_like(parameters["zeros"])
    gradients = {
        name: np.float32(scale) * numbers.uniform(f"gradient-{name}", shape) for name, (shape, scale) in CLIPPED.items()
    }
    return parameters, gradients


def mixed() -> tuple[np.ndarray, np.ndarray]:
    """Returns images, channels last, and labels of ten classes."""
    return numbers.uniform("mixed", (6, *MIXED_SIZE, 3)), numbers.labels(6, 10)


def distilled() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the logits of both heads and of the teacher, and soft labels."""
    logits = [3 * numbers.uniform(f"logits-{name}", (8, 10)) for name in ("classification", "distillation", "teacher")]
    labels = numbers.uniform("soft-labels", (8, 10), 0.0, 1.0)
    return logits[0], logits[1], logits[2], labels / labels.sum(-1, keepdims=True)


def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images of a step, their labels, and the teacher's logits."""
    size, classes = cases.TRAINING_BATCH, TRAINING["num_classes"]
    images = numbers.images(size, *TRAINING["image_size"])
    images = np.roll(images, step, axis=0) + 0.5 * numbers.uniform(f"step-{step}", images.shape)
    teacher = numbers.uniform(f"teacher-{step}", (size, classes))
    return images.astype(np.float32), (numbers.labels(size, classes) + step) % classes, teacher


# The operations of RandAugment: timm's name for each name of levitax.
OPERATIONS = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
STRENGTHS = (0.35, 0.9, -0.9, -0.47)
FILL = (124, 116, 104)


def image() -> np.ndarray:
    """Returns a small image with edges and gradients, 24x32."""
    shades = 60 * np.sin(np.arange(24)[:, None, None] / 5) + 50 * np.cos(np.arange(32)[None, :, None] / 7)
    return np.clip(120 + shades + 40 * numbers.uniform("picture", (24, 32, 3)), 0, 255).astype(np.uint8)
