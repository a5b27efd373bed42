"""Weights, statistics and images for comparisons, from a generator that any language can repeat.

The numbers of a tensor depend on its name alone: element i of the tensor called `name` is
`splitmix64(fnv1a64(name) + (i + 1) * 0x9E3779B97F4A7C15) >> 40`, over 2**24, in [0, 1).
The residual branches of a fresh LeViT are zero, so any two implementations agree on it. These numbers show differences.
"""

import math
import re

import numpy as np


Arrays = dict[str, np.ndarray]


# The weights of the normalisations that end a residual branch, in timm, transformers and vit-pytorch. If they are 1,
# gradients grow so steeply towards the stem that PyTorch's float32 differs from its float64 by 4e-4.
RESIDUAL_ENDS = re.compile(
    r"\.attn\.proj\.ln\.bn\.weight$|\.ln2\.bn\.weight$"
    r"|\.module\.(projection|linear_down)\.batch_norm\.weight$"
    r"|backbone\.\d*[02468]\..*\.to_out\.2\.weight$"
)


def uniform(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Returns float32 numbers in [low, high) that depend only on `name` and the position."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    z = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    return (low + (high - low) / 2**24 * z.astype(np.float32)).astype(np.float32).reshape(shape)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a PyTorch parameter or buffer, scaled so that activations keep their size through the network."""
    if name.endswith("running_mean"):
        return uniform(name, shape, -0.5, 0.5)
    if name.endswith("running_var"):
        return uniform(name, shape, 0.5, 1.5)
    if name.endswith("attention_biases"):
        return uniform(name, shape)
    if name.endswith("pos_bias.weight"):
        # vit-pytorch multiplies it by the square root of the keys' channels.
        return uniform(name, shape, -0.3, 0.3)
    if name.endswith("bias"):
        return uniform(name, shape, -0.5, 0.5)
    if RESIDUAL_ENDS.search(name):
        return uniform(name, shape, 0.15, 0.45)
    if len(shape) == 1:
        return uniform(name, shape, 0.5, 1.5)
    # At a gain of 1, the residuals of a deep network add up until softmax saturates, and rounding errors grow a
    # hundredfold in any implementation. At 0.5, the output does not depend on the image.
    gain = 0.8 if math.prod(shape[2:]) == 1 else 1.0
    bound = gain * math.sqrt(3 / math.prod(shape[1:]))
    return uniform(name, shape, -bound, bound)


def images(batch: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Returns a batch of images, channels last: patches of 32 pixels in different colours, and noise."""
    rows, columns = np.arange(height) // 32, np.arange(width) // 32
    patches = uniform("patches", (batch, rows[-1] + 1, columns[-1] + 1, channels), -2, 2)
    return patches[:, rows][:, :, columns] + uniform("noise", (batch, height, width, channels))


def labels(batch: int, classes: int) -> np.ndarray:
    """Returns a label for each image."""
    return np.floor(uniform("labels", (batch,), 0.0, classes)).astype(np.int32)
