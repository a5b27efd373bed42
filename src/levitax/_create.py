import fnmatch
import re
from collections.abc import Callable
from typing import TypeVar, Unpack

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ._checks import as_choice, as_flag, check_keywords
from ._config import LeViTConfig, LeViTKeywords, Overrides
from ._model import LeViT
from ._spelled_out import spelled_out
from ._variants import PRETRAINED, VARIANTS
from .weights import load


Variant = TypeVar("Variant", bound=Callable[..., tuple[LeViT, eqx.nn.State]])

# Published weights fit no other value of these. `load` can adapt them to the other overrides.
_FIXED = ("patch_size", "norm", "attention_bias")


def create_model(
    name: str, *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """Makes a variant and its state, by name.

    ```python
    model, state = levitax.create_model("levit_256", key=jax.random.key(0))
    model, state = levitax.create_model("levit_256", pretrained=True)
    ```

    **Arguments:**

    - `name`: one of `levitax.VARIANTS`, such as `"levit_256"`, in upper or lower case, with `-` or `_`.
    - `pretrained`: load the published weights of `levitax.PRETRAINED`. The first call downloads them from the Hugging
        Face hub; later calls read the hub's cache on this machine. Needs `pip install "levitax[weights]"`.
    - `key`: draws the initial weights. With `pretrained`, draws only a new classifier, if `num_classes` asks for one.
    - `overrides`: any of [`levitax.Overrides`][], such as `num_classes`. With `pretrained`, [`levitax.load`][] adapts
        the weights to them.

    **Returns:** the model, in training mode, and its state.

    **Raises:** `TypeError` if `name` is not a string; `ValueError` for an unknown name, and `TypeError` for an unknown
    keyword, both naming the nearest; `TypeError` without a `key` that is needed; and the errors of [`levitax.LeViT`][].
    With `pretrained`, also `ValueError` for a variant without published weights, and for another `patch_size`, `norm`
    or `attention_bias`; and the errors of [`levitax.load`][].
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` is {name!r}; expected the name of a variant, such as 'levit_256'.")
    canonical = as_choice("name", name.lower().replace("-", "_"), VARIANTS)
    _check_overrides(canonical, overrides)
    keywords: LeViTKeywords = {**VARIANTS[canonical], **overrides}
    if as_flag("pretrained", pretrained):
        _check_pretrained(canonical, LeViTConfig(**keywords))
        return load(PRETRAINED[canonical], key=key, **overrides)
    if key is None:
        way_out = " For the published weights, pass `pretrained=True`." if canonical in PRETRAINED else ""
        raise TypeError(
            "`key` is None; expected a JAX random key, such as `jax.random.key(0)`, which draws the initial weights."
            f"{way_out}"
        )
    return eqx.nn.make_with_state(LeViT)(**keywords, key=key)


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Lists the variants, for [`levitax.create_model`][].

    ```python
    levitax.list_models("levit-256*")  # ["levit_256", "levit_256d"]
    ```

    **Arguments:**

    - `pattern`: lists only names that match it as file names match a pattern of the shell, with `*`, `?` and `[...]`.
        Upper and lower case, and `-` and `_`, are the same.
    - `pretrained`: list only variants with published weights.

    **Returns:** the names, in the order of `levitax.VARIANTS`.

    **Raises:** `TypeError` if `pattern` is not a string, or `pretrained` not a `bool`.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"`pattern` is {pattern!r}; expected a string, such as 'levit_256*'.")
    # A dash in brackets stands for a range.
    dashes = re.compile(r"\[[^]]*\]|-")
    pattern = dashes.sub(lambda found: "_" if found[0] == "-" else found[0], pattern.lower())
    names = PRETRAINED if as_flag("pretrained", pretrained) else VARIANTS
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _check_overrides(name: str, overrides: Overrides) -> None:
    """Raises for an unknown keyword, and for one that the variants have fixed."""
    known = LeViTConfig(**VARIANTS[name]).to_dict()
    for keyword in overrides:
        if keyword in known and keyword not in Overrides.__annotations__:
            raise TypeError(
                f"`{keyword}` is {overrides[keyword]!r}, but {name!r} is a variant in which it is {known[keyword]}. "
                f"Leave out `{keyword}`; or make a network of other sizes, which has no published weights: "
                f"`eqx.nn.make_with_state(levitax.LeViT)(**{{**levitax.VARIANTS[{name!r}], {keyword!r}: ...}}, "
                "key=key)`."
            )
    check_keywords(overrides, Overrides)


def _check_pretrained(name: str, config: LeViTConfig) -> None:
    """Raises unless published weights fit `config`. Called before the download."""
    if name not in PRETRAINED:
        raise ValueError(
            f"`pretrained` is True, but {name!r} has no published weights; the variants with weights are "
            f"{', '.join(PRETRAINED)}. Choose one of them, or train from scratch: pass `key=jax.random.key(0)` instead "
            "of `pretrained=True`."
        )
    published = LeViTConfig(**VARIANTS[name])
    for keyword in _FIXED:
        value, expected = getattr(config, keyword), getattr(published, keyword)
        if value != expected:
            raise ValueError(
                f"`{keyword}` is {value!r}, but the published weights of {name!r} need {expected!r}: leave out "
                f"`{keyword}`, or train from scratch: pass `key=jax.random.key(0)` instead of `pretrained=True`."
            )


def _variant(function: Variant) -> Variant:
    defaults = LeViTConfig(**VARIANTS[function.__name__]).to_dict()
    return spelled_out(Overrides, defaults=defaults)(function)


@_variant
def levit_128s(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-128S from the paper: 7.8 M parameters, 0.305 GMAC, 76.6 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `pretrained`: load the published weights, as in [`levitax.create_model`][].
    - `key`: draws the initial weights. With `pretrained`, needed only for another `num_classes`.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_128s", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_128(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-128 from the paper: 9.2 M parameters, 0.41 GMAC, 78.6 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `pretrained`: load the published weights, as in [`levitax.create_model`][].
    - `key`: draws the initial weights. With `pretrained`, needed only for another `num_classes`.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_128", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_192(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-192 from the paper: 10.9 M parameters, 0.66 GMAC, 80.0 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `pretrained`: load the published weights, as in [`levitax.create_model`][].
    - `key`: draws the initial weights. With `pretrained`, needed only for another `num_classes`.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_192", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_256(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-256 from the paper: 18.9 M parameters, 1.13 GMAC, 81.6 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `pretrained`: load the published weights, as in [`levitax.create_model`][].
    - `key`: draws the initial weights. With `pretrained`, needed only for another `num_classes`.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_256", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_384(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-384 from the paper: 39.1 M parameters, 2.35 GMAC, 82.6 % top-1 on ImageNet-1k as published; drop path 0.1.

    **Arguments:**

    - `pretrained`: load the published weights, as in [`levitax.create_model`][].
    - `key`: draws the initial weights. With `pretrained`, needed only for another `num_classes`.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_384", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_384_s8(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-384 with tokens of 8x8 pixels and SiLU: 39.1 M parameters, 9.95 GMAC, no published weights.

    **Arguments:**

    - `pretrained`: must be `False`, since this variant has no published weights.
    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_384_s8", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_512_s8(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-512 with tokens of 8x8 pixels, SiLU and one head: 74.0 M parameters, 21.8 GMAC, no published
    weights.

    **Arguments:**

    - `pretrained`: must be `False`, since this variant has no published weights.
    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_512_s8", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_512(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-512, a wider LeViT with SiLU and one head: 95.2 M parameters, 5.62 GMAC, no published weights.

    **Arguments:**

    - `pretrained`: must be `False`, since this variant has no published weights.
    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_512", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_256d(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-256d, a deeper LeViT-256 with SiLU and one head: 26.2 M parameters, 1.39 GMAC, no published weights.

    **Arguments:**

    - `pretrained`: must be `False`, since this variant has no published weights.
    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_256d", pretrained=pretrained, key=key, **overrides)


@_variant
def levit_512d(
    *, pretrained: bool = False, key: PRNGKeyArray | None = None, **overrides: Unpack[Overrides]
) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-512d, a deeper LeViT with SiLU and one head: 92.5 M parameters, 5.84 GMAC, no published weights.

    **Arguments:**

    - `pretrained`: must be `False`, since this variant has no published weights.
    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_512d", pretrained=pretrained, key=key, **overrides)
