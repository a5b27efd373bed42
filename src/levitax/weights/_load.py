import dataclasses
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Unpack

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from .._build import make_head
from .._checks import check_keywords, name_of_function
from .._config import LeViTConfig, Overrides
from .._fuse import check_levit, fuse
from .._keys import as_key
from .._model import LeViT
from .._model_checks import check_state
from . import _tree
from ._adapt import adapted
from ._open import open_weights, Source, Weights


def load(
    source: Source,
    *,
    key: PRNGKeyArray | None = None,
    revision: str | None = None,
    prefix: str | None = None,
    allow_nonfinite: bool = False,
    **overrides: Unpack[Overrides],
) -> tuple[LeViT, eqx.nn.State]:
    """Loads weights, and makes the model that they belong to.

    Infers the layout from the array names and the sizes from their shapes. Reads the files of the authors, timm (any
    version), transformers, mmpretrain and vit-pytorch, and our own.

    ```python
    model, state = levitax.load("timm/levit_256.fb_dist_in1k")
    model, state = levitax.load("levit_256.pth", image_size=(320, 192), num_classes=10, key=key)
    ```

    **Arguments:**

    - `source`: a file, `.safetensors` or (with PyTorch 2.10 or newer installed) `.pth`; the index of a checkpoint in
        shards, `model.safetensors.index.json`; a folder with one of these; a run folder such as "runs/flowers", which
        is the model of the last epoch, or "runs/flowers/best" and "runs/flowers/ema"; the name of a repository on the
        Hugging Face hub; or arrays by name, such as `torch_model.state_dict()`. In the checkpoint of a training script,
        reads the entry `"model"` or `"state_dict"`.
    - `key`: draws a new classifier, if `num_classes` asks for one. Nothing else is drawn.
    - `revision`: branch, tag or commit on the hub.
    - `prefix`: reads only arrays whose names begin with it, such as "encoder." for the LeViT inside a larger model, or
        "teacher." for one of several. The keys of nested dictionaries are parts of the names. The prefixes "module.",
        "model." and "_orig_mod.", which wrappers put before every name, are found automatically.
    - `allow_nonfinite`: accept weights that are NaN or infinite, and negative variances.
    - `overrides`: keywords to change, as in [`levitax.LeViT`][]; see [`levitax.weights.adapt`][].

    The shapes do not determine every keyword. The other keywords come from the header of our own files, from a
    `config.json` next to other files, or from the published variant with these sizes. If none of these sources gives
    the activation, `load` assumes hard-swish. A file of a model whose activation is a function has the function's name
    only: pass `activation=function`. If none gives the image size, `load` takes `image_size`, provided that it
    fits the weights exactly. Otherwise it assumes square images, with a warning if rectangles fit as well. A file
    without its last blocks or without a head is read as a smaller model, unless a header or `config.json` says
    otherwise.

    Inside the constructor of a module of your own, use [`levitax.weights.load_initial`][].

    **Returns:** the model, in training mode, with float32 parameters for any dtype of the file, and its state. The file
    of a fused model, from levitax or another library, loads as a fused model:
    `predict = levitax.Predictor(*levitax.load(path))`.

    **Raises:** `FileNotFoundError` if there is no such file, shard or repository; `ConnectionError` if the hub is out
    of reach; `ModuleNotFoundError` if a package for it is missing. `ValueError` if the file is corrupt, contains no
    LeViT, comes from a later version or asks to run code. `ValueError` also if arrays are missing, unexpected, of a
    wrong shape or not finite; the message names all of them. The same error is raised if a folder has several weight
    files, if the names have another prefix, or if the overrides do not fit. `TypeError` if `key` is not a key, or for
    an unknown keyword.
    """
    with open_weights(
        source,
        revision,
        overrides.get("image_size"),
        prefix=prefix,
        allow_nonfinite=allow_nonfinite,
        activation=overrides.get("activation"),
    ) as weights:
        config = _changed(weights.config, overrides)
        _check_fixed(weights, config, overrides)
        read = adapted(weights.read, weights.config, config, _drawn_head(config, key))
        model, state = _tree.fill(*_tree.skeleton(config, weights.form), read)
    if weights.form == "folded":
        predict = fuse(model, state)
        return predict.model, predict.state
    return model, state


def load_into(
    model: LeViT,
    state: eqx.nn.State,
    source: Source,
    *,
    revision: str | None = None,
    prefix: str | None = None,
    allow_nonfinite: bool = False,
) -> tuple[LeViT, eqx.nn.State]:
    """Loads weights into an existing model, which may be inside a module of your own.

    ```python
    module, state = eqx.nn.make_with_state(Module)(key=key)
    backbone, state = levitax.weights.load_into(module.backbone, state, "levit_256.safetensors")
    module = eqx.tree_at(lambda module: module.backbone, module, backbone)
    ```

    **Arguments:**

    - `model`: has the architecture and the activation of the weights. If the model is for other images or classes, the
        weights are adapted as by [`levitax.weights.adapt`][], but a classifier for other classes keeps its own linear
        layer. The parameters become float32. The model's `image_size` helps to recognise the weights, as in
        [`levitax.load`][].
    - `state`: the state of the model, or of the module that contains it.
    - `source`, `revision`, `prefix`, `allow_nonfinite`: as in [`levitax.load`][].

    **Returns:** the model and the state with the new weights and statistics. Other entries of `state` stay.

    **Raises:** the errors of [`levitax.load`][]; `ValueError` if the architectures differ; `TypeError` if `model` is
    not a [`levitax.LeViT`][] or `state` not an `eqx.nn.State`.
    """
    check_levit(model)
    check_state(state)
    with _open_for(model, source, revision, prefix=prefix, allow_nonfinite=allow_nonfinite) as weights:
        model, state = _tree.fill(model, state, _for_model(weights, model, state))
    return model, state


def load_initial(
    model: LeViT,
    source: Source,
    *,
    revision: str | None = None,
    prefix: str | None = None,
    allow_nonfinite: bool = False,
) -> LeViT:
    """Like [`levitax.weights.load_into`][], but without a state: for the constructor of a module of your own.

    ```python
    class Module(eqx.Module):
        backbone: levitax.LeViT

        def __init__(self, *, key):
            backbone = levitax.LeViT(num_classes=0, key=key)
            self.backbone = levitax.weights.load_initial(backbone, "levit_256.safetensors")

    module, state = eqx.nn.make_with_state(Module)(key=key)
    ```

    **Arguments:** as in [`levitax.weights.load_into`][], without `state`.

    **Returns:** the model with the new weights and statistics.

    **Raises:** the errors of [`levitax.weights.load_into`][]; `ValueError` if the model is already split from its
    state.
    """
    check_levit(model)
    with _open_for(model, source, revision, prefix=prefix, allow_nonfinite=allow_nonfinite) as weights:
        model = _tree.fill_initial(model, _for_model(weights, model, None))
    return model


def adapt(
    model: LeViT, state: eqx.nn.State, *, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """Makes a model for other images or classes from a trained one.

    **Arguments:**

    - `model`, `state`: the trained model and its state, which do not change.
    - `key`: draws a new classifier, if `num_classes` asks for one.
    - `overrides`: keywords to change, as in [`levitax.LeViT`][]:
        - `image_size`: each table of attention biases is interpolated linearly between its offsets. The smallest and
            the largest offset stay in place, so offset 0, the bias of a token towards itself, keeps its value.
        - `num_classes`: draws new classifiers after the existing normalisations; 0 removes them.
        - `in_channels`: the sum of each filter over the channels stays the same. A single channel gets the filters of
            red, green and blue together. Additional channels share the filters of the first ones in equal parts.
        - `distillation`: `False` merges two heads into one that computes the mean of their logits; `True` gives both
            heads the weights of the one.
        - other keywords change no array. `patch_size` cannot change.

    **Returns:** a new model, in the same mode, with float32 parameters, and its own state. For a LeViT inside a module,
    make the module again with a LeViT of the new size, and call
    `load_into(module.backbone, state, state_dict(old.backbone, old_state, layout="levitax"))`.

    **Raises:** `ValueError` for another `patch_size`, if a key is missing, or if the model is fused; `TypeError` if
    `model` is not a [`levitax.LeViT`][] or `state` not an `eqx.nn.State`; and the errors of [`levitax.LeViT`][] for the
    overrides.
    """
    check_state(state)
    check_levit(model)
    config = _changed(model.config, overrides)
    own = _tree.checked_arrays(model, state)
    read = adapted(own.__getitem__, model.config, config, _drawn_head(config, key))
    new, new_state = _tree.fill(*_tree.skeleton(config), read)
    return _in_mode_of(model, new), new_state


def _open_for(model: LeViT, source: Source, revision: str | None, **options: Any) -> AbstractContextManager[Weights]:
    config = model.config
    return open_weights(source, revision, config.image_size, activation=config.activation, **options)


def _changed(config: LeViTConfig, overrides: Overrides) -> LeViTConfig:
    check_keywords(overrides, Overrides)
    for name in ("norm", "attention_bias"):
        if (factory := overrides.get(name)) is not None:
            raise ValueError(
                f"`{name}` is `{name_of_function(factory)}`, and the weights are those of a LeViT with its own. "
                f"Make the model with `{name}=...`, and take over the parts that fit with `eqx.tree_at`."
            )
    return dataclasses.replace(config, **overrides)


def _check_fixed(weights: Weights, config: LeViTConfig, overrides: Overrides) -> None:
    """Raises if an override changes a keyword that cannot change after fusing."""
    fixed = {"whole": (), "folded": ("num_classes", "distillation"), "fused": tuple(overrides)}[weights.form]
    changed = [name for name in fixed if getattr(config, name) != getattr(weights.config, name)]
    if changed:
        raise ValueError(
            f"{weights.where} holds a fused model, which cannot have another "
            f"{', '.join(f'`{name}`' for name in changed)}: load the weights from before fusing."
        )


def _for_model(weights: Weights, model: LeViT, state: eqx.nn.State | None) -> _tree.Reader:
    own = _tree.checked_arrays(model, state)
    if weights.form != "whole":
        raise ValueError(
            f"{weights.where} holds a fused model, whose normalisations are folded in. Read it with `levitax.load` for "
            "a `levitax.Predictor`, or use the weights from before fusing."
        )
    if weights.knows_activation and weights.config.activation != model.config.activation:
        raise ValueError(
            f"`activation` is {model.config.activation!r} in the model and {weights.config.activation!r} in "
            f"{weights.where}. Make the model with the activation of the weights."
        )
    return adapted(weights.read, weights.config, model.config, own.__getitem__)


def _drawn_head(config: LeViTConfig, key: PRNGKeyArray | None) -> _tree.Reader:
    if key is not None:
        as_key(key)

    @cache
    def arrays():
        if key is None:
            raise ValueError(
                f"The weights have no classifier for `num_classes` {config.num_classes}: pass `key=...` to draw one."
            )
        head = make_head(config, key)
        assert head is not None, "asked for an array of a missing head"
        return _tree.arrays(head, None)

    return lambda path: arrays()[path.removeprefix("head.")]


def _in_mode_of(model: LeViT, new: LeViT) -> LeViT:
    """`new` with the `inference` flags of `model`. New parts, such as a head, are in inference if all of `model` is."""
    flags = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model) if isinstance(leaf, bool)}
    keep = lambda path, leaf: flags.get(path, all(flags.values())) if isinstance(leaf, bool) else leaf
    return jax.tree_util.tree_map_with_path(keep, new)
