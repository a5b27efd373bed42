from collections.abc import Callable
from typing import Any

import numpy as np

from .._extras import extra, require


Color = int | tuple[int, int, int]


def rand_augment(image: Any, rng: np.random.Generator, *, magnitude: float = 9.0, fill: Color) -> Any:
    """Applies RandAugment (Cubuk et al. 2019, arXiv 1909.13719) to an image, with the settings of the LeViT paper.

    Equals timm's `rand-m9-mstd0.5-inc1`. Draws two of fifteen operations, with replacement. Applies each with
    probability 1/2, at a strength drawn from N(`magnitude`, 0.5) and clipped to [0, 10]. The operations are Pillow's.
    No other library has these strengths without PyTorch.

    **Arguments:**

    - `image`: a Pillow image in mode "RGB" or "L".
    - `rng`: the source of all random numbers.
    - `magnitude`: the mean strength, from 0 to 10.
    - `fill`: the value of pixels from outside the image, from 0 to 255; one number for each channel.

    **Returns:** a Pillow image of the same mode and size.
    """
    for name in rng.choice(list(OPERATIONS), 2):
        if rng.random() < 0.5:
            strength = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10
            image = apply(str(name), image, float(strength * rng.choice((-1, 1))), fill)
    return image


def apply(name: str, image: Any, strength: float, fill: Color) -> Any:
    """Applies one of `OPERATIONS` to an image. The strength is from -1 to 1; its sign is the direction, for operations
    that have one."""
    for module in ("PIL.ImageEnhance", "PIL.ImageOps"):
        require(module, "RandAugment", extra("data"))
    return OPERATIONS[name](require("PIL", "RandAugment", extra("data")), image, strength, fill)


def _affine(pil, image, matrix, fill):
    return image.transform(
        image.size, pil.Image.Transform.AFFINE, matrix, resample=pil.Image.Resampling.BICUBIC, fillcolor=fill
    )


def _enhance(kind, image, strength):
    return kind(image).enhance(max(0.1, 1 + 0.9 * strength))


def _posterize(pil, image, bits):
    # With 0 bits the image is black. Older versions of Pillow returned that, but Pillow 13 raises an error.
    return pil.ImageOps.posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))


def _brighten_shadows(image, added):
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


# Functions of (Pillow, image, strength, fill), by name.
OPERATIONS: dict[str, Callable[[Any, Any, float, Color], Any]] = {
    "auto_contrast": lambda pil, image, strength, fill: pil.ImageOps.autocontrast(image),
    "equalize": lambda pil, image, strength, fill: pil.ImageOps.equalize(image),
    "invert": lambda pil, image, strength, fill: pil.ImageOps.invert(image),
    "rotate": lambda pil, image, strength, fill: image.rotate(
        30 * strength, resample=pil.Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "posterize": lambda pil, image, strength, fill: _posterize(pil, image, 4 - int(4 * abs(strength))),
    "solarize": lambda pil, image, strength, fill: pil.ImageOps.solarize(image, 256 - int(256 * abs(strength))),
    "solarize_add": lambda pil, image, strength, fill: _brighten_shadows(image, int(110 * abs(strength))),
    "color": lambda pil, image, strength, fill: _enhance(pil.ImageEnhance.Color, image, strength),
    "contrast": lambda pil, image, strength, fill: _enhance(pil.ImageEnhance.Contrast, image, strength),
    "brightness": lambda pil, image, strength, fill: _enhance(pil.ImageEnhance.Brightness, image, strength),
    "sharpness": lambda pil, image, strength, fill: _enhance(pil.ImageEnhance.Sharpness, image, strength),
    "shear_x": lambda pil, image, strength, fill: _affine(pil, image, (1, 0.3 * strength, 0, 0, 1, 0), fill),
    "shear_y": lambda pil, image, strength, fill: _affine(pil, image, (1, 0, 0, 0.3 * strength, 1, 0), fill),
    "translate_x": lambda pil, image, strength, fill: _affine(
        pil, image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill
    ),
    "translate_y": lambda pil, image, strength, fill: _affine(
        pil, image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill
    ),
}
