import json
import os
import warnings
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._checks import as_choice, name_of_function
from .._files import as_path
from .._fuse import check_levit
from .._model import LeViT
from .._model_checks import check_state
from .._outline import is_fused
from ..data import Preprocessing
from ..data._preprocessing import check_fits
from . import _tree
from ._companions import companions, replaced
from ._entries import entries, places
from ._files import SAFETENSORS, write_safetensors
from ._format import Header
from ._layouts import LayoutName, LAYOUTS
from ._locate import read_json
from ._shards import index_of


def save(
    path: str | os.PathLike[str],
    model: LeViT,
    state: eqx.nn.State,
    *,
    preprocessing: Preprocessing | None = None,
    layout: LayoutName = "levitax",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a model's weights and running statistics to a safetensors file.

    A reader sees the old file or the complete new one, even if writing fails or two processes write at once.

    **Arguments:**

    - `path`: ends in `.safetensors`. An existing file is replaced.
    - `model`, `state`: a [`levitax.LeViT`][], and its state or the state of the module that contains it. For a fused
        model, `predict.model` and `predict.state`; only our own layout can hold it. A file does not hold functions: of
        an activation that is one it has the name, and [`levitax.load`][] asks for the function. A model with parts that
        are not levitax's is refused; write it with `eqx.tree_serialise_leaves`.
    - `preprocessing`: the preprocessing of the model's images and the names of its classes, for
        [`levitax.load_preprocessing`][]. By default the file has none.
    - `layout`: our own, from which [`levitax.load`][] restores every keyword of the model; or the layout of another
        library, see [`levitax.weights.state_dict`][].
    - `dtype`: of the arrays in the file. "bfloat16" halves its size.

    timm and transformers store the preprocessing in JSON files next to a `model.safetensors`. If `path` has that name,
    `layout` is one of theirs and `preprocessing` is given, their files are written too: `config.json`, and for
    transformers `preprocessor_config.json`. Existing files keep the entries that neither library reads for a LeViT.

    NaN and infinite values are written, with a warning.

    **Raises:** `OSError` if the file cannot be written; the old file then stays. `ValueError` for another suffix,
    layout or dtype, and for a `preprocessing` of another model. `ValueError` also for a model that does not match its
    configuration, or that the layout cannot hold. `TypeError` if `model` is not a [`levitax.LeViT`][] or `state` not an
    `eqx.nn.State`; `ModuleNotFoundError` without safetensors.
    """
    check_levit(model)
    path = as_path("path", path)
    if path.suffix.lower() not in SAFETENSORS:
        raise ValueError(
            f"`path` is `{path}`; expected a name that ends in .safetensors. For a .pth, pass the result of "
            "`levitax.weights.state_dict(model, state, layout=...)` to `torch.save`, with each array through "
            "`torch.from_numpy`."
        )
    if index := index_of(path.name):
        raise ValueError(
            f"`path` is `{path}`, the name of one of several shards, which needs `{index}` to be read; expected a "
            "name without `-1-of-5`, such as `fold-1.safetensors`."
        )
    as_choice("dtype", dtype, ("float32", "bfloat16"))
    check_state(state)
    config = model.config
    if preprocessing is not None:
        sizes = {"image_size": config.image_size, "channels": config.in_channels, "num_classes": config.num_classes}
        check_fits(preprocessing, **sizes)
    if layout == "levitax":
        arrays = _tree.checked_arrays(model, state, allow_fused=True)
        metadata = Header(layout, config, is_fused(model), preprocessing).to_metadata()
    else:
        arrays = state_dict(model, state, layout=layout)
        # transformers requires "format". Our own header holds what the layout cannot.
        metadata = {"format": "pt", **Header(layout, config, False, preprocessing).to_metadata()}
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        warnings.warn(
            f"`model` or `state` has NaN or infinite values in {', '.join(wrong[:8])}{', ...' * (len(wrong) > 8)}. "
            "`levitax.load` reads the file only with `allow_nonfinite=True`.",
            stacklevel=2,
        )
    texts = {}
    if preprocessing is not None and path.name == "model.safetensors":
        for name, content in companions(layout, config, preprocessing).items():
            file = path.with_name(name)
            texts[file] = json.dumps(replaced(read_json(file), content), indent=2, ensure_ascii=False)
    cast = lambda array: array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array
    write_safetensors(path, {name: np.asarray(cast(array)) for name, array in arrays.items()}, metadata, texts)


def state_dict(model: LeViT, state: eqx.nn.State, *, layout: LayoutName) -> dict[str, np.ndarray]:
    """Converts a model's weights and running statistics to the names and shapes of another library.

    The other library's `load_state_dict(..., strict=True)` accepts them:

    ```python
    arrays = levitax.weights.state_dict(model, state, layout="timm")
    torch_model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    ```

    **Arguments:**

    - `model`, `state`: a [`levitax.LeViT`][], not fused, and its state or the state of the module
        that contains it.
    - `layout`: "timm" or "timm_conv", for `levit_*` and `levit_conv_*`; "transformers" for
        `LevitForImageClassification` and `...WithTeacher`, "transformers_backbone" for `LevitModel`; "official" for the
        authors' repository and timm before 2023; "mmpretrain"; "vit_pytorch", only for models of that network;
        "levitax" for the paths in the model itself.

    Make the other library's model with the same sizes. In transformers: `LevitConfig(hidden_sizes=config.dim,
    num_attention_heads=config.heads, depths=config.depth, key_dim=config.key_dim, num_labels=config.num_classes,
    image_size=config.image_size[0])`, with `config = model.config`. Its `to_json_file("config.json")` next to a
    `model.safetensors` makes a folder for `from_pretrained`.

    **Returns:** float32 arrays by name, and the integers that the other library stores with them.

    **Raises:** `ValueError` for another layout, for a model that does not match its configuration, and for a model that
    the layout cannot hold; `TypeError` if `model` is not a [`levitax.LeViT`][] or `state` not an `eqx.nn.State`.
    """
    as_choice("layout", layout, LAYOUTS)
    check_levit(model)
    check_state(state)
    config, names = model.config, LAYOUTS[layout]
    arrays = _tree.checked_arrays(model, state)
    if layout != "levitax" and (layout == "vit_pytorch") != (config.network == "vit_pytorch"):
        raise ValueError(
            f"`layout` is {layout!r}, which is for another network than the model's, {config.network!r}: no library "
            "could load the result."
        )
    if layout in ("official", "transformers", "transformers_backbone", "mmpretrain"):
        if config.activation != "hard_swish" or config.patch_size != 16:
            raise ValueError(
                f"`layout` is {layout!r}, whose models have `activation` 'hard_swish' and `patch_size` 16; this one "
                f"has {_shown(config.activation)} and {config.patch_size}. Use timm's layout, which can hold it."
            )
    if layout == "transformers_backbone" and config.num_classes:
        raise ValueError(
            "`layout` is 'transformers_backbone', which has no classifier, and the model has one: remove it with "
            "`levitax.weights.adapt(model, state, num_classes=0)`."
        )
    kept = entries(names, config, {path: array.shape for path, array in arrays.items()})
    found: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        found |= kept[path].write(np.array(array, np.float32))  # A copy: PyTorch needs it to be writable.
    if names.batch_count:
        owners = [name.removesuffix(names.mean) for name in found if name.endswith(names.mean)]
        found |= {owner + names.batch_count: np.zeros((), np.int64) for owner in owners}
    if names.bias_index:
        for place in places(config.depth):
            sizes = config.block_sizes(place.stage)[place.block]
            found[f"{names.attention(place)}.{names.bias_index}"] = _bias_index(sizes.grid, sizes.stride)
    return found


def _shown(activation: Any) -> str:
    return repr(activation) if isinstance(activation, str) else f"the function `{name_of_function(activation)}`"


def _bias_index(grid: tuple[int, int], stride: int) -> np.ndarray:
    """The index into a flat table of attention biases for each query and key."""
    rows, columns = (np.abs(np.arange(0, size, stride)[:, None] - np.arange(size)) for size in grid)
    index = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]
    return index.reshape(len(rows) * len(columns), -1).astype(np.int64)
