"""What is compared, and how closely."""

from typing import Any, NamedTuple

import levitax


# Largest error over largest magnitude, tensor by tensor. Never loosened.
FORWARD = 1e-5
BACKWARD = 1e-4
STATISTICS = 1e-4
# Ours against the reference's float32, over the reference's bfloat16 against it.
BFLOAT16_RATIO = 1.0

PUBLISHED = ("levit_128s", "levit_128", "levit_192", "levit_256", "levit_384")

# The example of vit-pytorch's README, and of the Flax port after it; its dropout is off where numbers are compared.
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
    """Pixels of the images, and those that the reference must be told to arrive at the same grid.

    The references round the grid down, though their convolutions round it up.
    """

    height: int
    width: int
    told: tuple[int, int]


SQUARE = Size(224, 224, (224, 224))
RECTANGLE = Size(96, 160, (96, 160))
ODD = Size(200, 225, (208, 240))
TRAINING_BATCH = 12
TRAINING_STEPS = 10
LEARNING_RATE = 1e-4
SMOOTHING = 0.1


TIMM_GRADIENTS: dict[str, Any] = {**levitax.VARIANTS["levit_128s"], "image_size": (128, 160), "num_classes": 100}
# The derivative of hard-swish jumps at -3 and 3. A rounding error that carries one activation across is a change of one
# in a thousand in some gradients of the last stage, and over ten steps PyTorch's own float32 parts from its float64 by
# up to 2e-1. With SiLU it stays within 9e-6, so that is where many steps are compared.
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
    """A name, a variant and a size for each comparison with timm in inference."""
    sizes = [("square", variant, SQUARE) for variant in levitax.VARIANTS]
    sizes += [("rectangle", variant, RECTANGLE) for variant in levitax.VARIANTS]
    sizes += [("odd", "levit_192", ODD)]
    return [(f"{variant}-{shape}", variant, size) for shape, variant, size in sizes]


def check_forward(errors: dict[str, Any]) -> None:
    """Asserts that maps and logits are close enough."""
    # One by one: the `max` of a list with NaN in it may be any of the others.
    for name, error in errors.items():
        assert error <= FORWARD, (name, error)


def check_training(errors: dict[str, Any]) -> None:
    """Asserts that gradients, final arrays, losses and final logits are close enough."""
    for name, error in errors.items():
        assert error <= (STATISTICS if name.startswith("final:") else BACKWARD), (name, error)
