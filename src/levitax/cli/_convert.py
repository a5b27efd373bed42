import shlex
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

import levitax

from ..weights._layouts import LayoutName
from ._options import check_new, ImageSize, Overwrite, sizes_of, to_write, Weights


def _safetensors(_: object, path: Path) -> None:
    to_write([".safetensors"], path)


def convert(
    weights: Weights,
    *,
    out: Annotated[Path, Parameter(help="The file to write; ends in .safetensors.", validator=_safetensors)],
    layout: Annotated[LayoutName, Parameter(help="Of levitax, or of another library.")] = "levitax",
    dtype: Annotated[Literal["float32", "bfloat16"], Parameter(help="Of the arrays in the file.")] = "float32",
    image_size: ImageSize = None,
    overwrite: Overwrite = False,
) -> None:
    """Converts weights of any layout to any other, with their preprocessing and class names.

    The weights may be in the layout of levitax, of the authors, of timm, transformers, mmpretrain or vit-pytorch. For
    timm and transformers, name the file model.safetensors: the command then writes their JSON files next to it.
    """
    writes_json = out.name == "model.safetensors" and layout.startswith(("timm", "transformers"))
    from ..weights._preprocessing import NoPreprocessing
    from ._split import copy_split

    check_new(out, out.with_name("config.json") if writes_json else None, overwrite=overwrite)
    sizes = sizes_of(image_size)
    model, state = levitax.load(weights, **sizes)
    try:
        preprocessing = levitax.load_preprocessing(weights, **sizes)
    except NoPreprocessing:
        preprocessing = None
        print(f"{weights} does not say how to preprocess images, and neither will {out}")
    levitax.save(out, model, state, preprocessing=preprocessing, layout=layout, dtype=dtype)
    print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB in the layout {layout!r}")
    copy_split(weights, out)
    print(f"next: levitax summary {shlex.quote(str(out))}")
