"""The cases and tolerances of the comparisons."""

from typing import Any, NamedTuple

import levitax


# Limits for the largest error over the largest magnitude of each tensor. Never loosen them.
FORWARD = 1e-5
BACKWARD = 1e-4
STATISTICS = 1e-4
# The bfloat16 error of levitax over the bfloat16 error of the reference, both against the reference's float32.
BFLOAT16_RATIO = 1.0

PUBLISHED = ("levit_128s", "levit_128", "levit_192", "levit_256", "levit_384")

# The example in the README of vit-pytorch and of its Flax port. Dropout is off where numbers are compared.
VIT_PYTORCH_EXAMPLE: dict[str, Any] = {
    "num_classes": 1000,
    "stages": 3,
    "dim": (256, 384, 512),
    "depth": 4,
    "heads": (4, 6, 8),
    "mlp_mult": 2,
    "dropout": 0.0,
}


class Size(NamedTuple):
    """The size of the images, and the size to give the reference so that it has the same grid.

    The references round the grid down, although their convolutions round it up.
    """

    height: int
    width: int
    requested: tuple[int, int]


SQUARE = Size(224, 224, (224, 224))
RECTANGLE = Size(96, 160, (96, 160))
ODD = Size(200, 225, (208, 240))
TRAINING_BATCH = 12
TRAINING_STEPS = 10
LEARNING_RATE = 1e-4
SMOOTHING = 0.1


TIMM_GRADIENTS: dict[str, Any] = {**levitax.VARIANTS["levit_128s"], "image_size": (128, 160), "num_classes": 100}
# The derivative of hard-swish jumps at -3 and 3. A rounding error that moves one activation across a jump changes some
# gradients of the last stage by 1e-3. Over ten steps, the float32 and float64 results of PyTorch differ by up to 2e-1.
# With SiLU they differ by at most 9e-6, so comparisons of many steps use SiLU.
TIMM_TRAINING: dict[str, Any] = {**TIMM_GRADIENTS, "activation": "silu"}
VIT_PYTORCH_TRAINING: dict[str, Any] = {
    "network": "vit_pytorch",
    "distillation": True,
    "image_size": (64, 64),
    "num_classes": 100,
    "stages": 3,
    "dim": (64, 96, 128),
    "depth": (2, 1, 1),
    "heads": (2, 3, 4),
    "mlp_mult": 2,
    "dropout": 0.0,
}


def evaluation_cases() -> list[tuple[str, str, Size]]:
    """Returns a name, a variant and a size for each comparison with timm in inference."""
    sizes = [("square", variant, SQUARE) for variant in levitax.VARIANTS]
    sizes += [("rectangle", variant, RECTANGLE) for variant in levitax.VARIANTS]
    sizes += [("odd", "levit_192", ODD)]
    return [(f"{variant}-{shape}", variant, size) for shape, variant, size in sizes]


def check_forward(errors: dict[str, Any]) -> None:
    """Asserts that maps and logits are close enough."""
    # One by one, because the `max` of a list with NaN may be another element.
    for name, error in errors.items():
        assert error <= FORWARD, (name, error)


def check_training(errors: dict[str, Any]) -> None:
    """Asserts that gradients, final arrays, losses and final logits are close enough."""
    for name, error in errors.items():
        assert error <= (STATISTICS if name.startswith("final:") else BACKWARD), (name, error)
