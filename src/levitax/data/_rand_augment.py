from collections.abc import Callable
from typing import Any

import numpy as np

from .._extras import extra, require


Color = int | tuple[int, int, int]


def rand_augment(picture: Any, rng: np.random.Generator, *, magnitude: float = 9.0, fill: Color) -> Any:
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as the paper has it: timm's `rand-m9-mstd0.5-inc1`.

    Two of fifteen operations are drawn, with replacement. Each is done with probability 1/2, at a strength from
    N(`magnitude`, 0.5), kept within 0 and 10. No library has it with these strengths and without PyTorch; what the
    operations do is Pillow's.

    **Arguments:**

    - `picture`: of Pillow, in mode "RGB" or "L".
    - `rng`: draws everything.
    - `magnitude`: mean strength, from 0 to 10.
    - `fill`: what comes in from outside, from 0 to 255, one number for each channel.

    **Returns:** a picture of the same mode and size.
    """
    for name in rng.choice(list(OPERATIONS), 2):
        if rng.random() < 0.5:
            strength = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10
            picture = apply(str(name), picture, float(strength * rng.choice((-1, 1))), fill)
    return picture


def apply(name: str, picture: Any, strength: float, fill: Color) -> Any:
    """Does one of `OPERATIONS` to a picture, at a strength from 0 to 1, whose sign tells the direction where there are
    two."""
    for module in ("PIL.ImageEnhance", "PIL.ImageOps"):
        require(module, "RandAugment", extra("data"))
    return OPERATIONS[name](require("PIL", "RandAugment", extra("data")), picture, strength, fill)


def _affine(pil, picture, matrix, fill):
    return picture.transform(
        picture.size, pil.Image.Transform.AFFINE, matrix, resample=pil.Image.Resampling.BICUBIC, fillcolor=fill
    )


def _enhance(kind, picture, strength):
    return kind(picture).enhance(max(0.1, 1 + 0.9 * strength))


def _posterize(pil, picture, bits):
    # Pillow 13 refuses what came out black before.
    return pil.ImageOps.posterize(picture, bits) if bits else picture.point([0] * 256 * len(picture.getbands()))


def _brighten_shadows(picture, added):
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return picture.point(table * len(picture.getbands()))


# By name, of (Pillow, picture, strength, fill).
OPERATIONS: dict[str, Callable[[Any, Any, float, Color], Any]] = {
    "auto_contrast": lambda pil, picture, strength, fill: pil.ImageOps.autocontrast(picture),
    "equalize": lambda pil, picture, strength, fill: pil.ImageOps.equalize(picture),
    "invert": lambda pil, picture, strength, fill: pil.ImageOps.invert(picture),
    "rotate": lambda pil, picture, strength, fill: picture.rotate(
        30 * strength, resample=pil.Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "posterize": lambda pil, picture, strength, fill: _posterize(pil, picture, 4 - int(4 * abs(strength))),
    "solarize": lambda pil, picture, strength, fill: pil.ImageOps.solarize(picture, 256 - int(256 * abs(strength))),
    "solarize_add": lambda pil, picture, strength, fill: _brighten_shadows(picture, int(110 * abs(strength))),
    "color": lambda pil, picture, strength, fill: _enhance(pil.ImageEnhance.Color, picture, strength),
    "contrast": lambda pil, picture, strength, fill: _enhance(pil.ImageEnhance.Contrast, picture, strength),
    "brightness": lambda pil, picture, strength, fill: _enhance(pil.ImageEnhance.Brightness, picture, strength),
    "sharpness": lambda pil, picture, strength, fill: _enhance(pil.ImageEnhance.Sharpness, picture, strength),
    "shear_x": lambda pil, picture, strength, fill: _affine(pil, picture, (1, 0.3 * strength, 0, 0, 1, 0), fill),
    "shear_y": lambda pil, picture, strength, fill: _affine(pil, picture, (1, 0, 0, 0.3 * strength, 1, 0), fill),
    "translate_x": lambda pil, picture, strength, fill: _affine(
        pil, picture, (1, 0, 0.45 * strength * picture.width, 0, 1, 0), fill
    ),
    "translate_y": lambda pil, picture, strength, fill: _affine(
        pil, picture, (1, 0, 0, 0, 1, 0.45 * strength * picture.height), fill
    ),
}
