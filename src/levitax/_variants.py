from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar, Unpack

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ._checks import as_choice, check_keywords
from ._config import LeViTConfig, LeViTKeywords, Overrides
from ._model import LeViT
from ._spelled_out import spelled_out


Variant = TypeVar("Variant", bound=Callable[..., tuple[LeViT, eqx.nn.State]])


VARIANTS: Mapping[str, LeViTKeywords] = MappingProxyType(
    {
        "levit_128s": {"dim": (128, 256, 384), "key_dim": 16, "heads": (4, 6, 8), "depth": (2, 3, 4)},
        "levit_128": {"dim": (128, 256, 384), "key_dim": 16, "heads": (4, 8, 12)},
        "levit_192": {"dim": (192, 288, 384), "heads": (3, 5, 6)},
        "levit_256": {"dim": (256, 384, 512), "heads": (4, 6, 8)},
        "levit_384": {"dim": (384, 512, 768), "heads": (6, 9, 12), "drop_path": 0.1},
        "levit_384_s8": {"dim": (384, 512, 768), "heads": (6, 9, 12), "patch_size": 8, "activation": "silu"},
        "levit_512_s8": {
            "dim": (512, 640, 896),
            "key_dim": 64,
            "heads": (8, 10, 14),
            "patch_size": 8,
            "activation": "silu",
            "distillation": False,
        },
        "levit_512": {
            "dim": (512, 768, 1024),
            "key_dim": 64,
            "heads": (8, 12, 16),
            "activation": "silu",
            "distillation": False,
        },
        "levit_256d": {
            "dim": (256, 384, 512),
            "heads": (4, 6, 8),
            "depth": (4, 8, 6),
            "activation": "silu",
            "distillation": False,
        },
        "levit_512d": {
            "dim": (512, 640, 768),
            "key_dim": 64,
            "heads": (8, 10, 12),
            "depth": (4, 8, 6),
            "activation": "silu",
            "distillation": False,
        },
    }
)
"""The keywords of a [`levitax.LeViT`][] for each variant, by name. The first five are in table 2 of the paper, which
calls `dim` C, `heads` N and `key_dim` D. The other five are timm's, without published weights."""


def create_model(name: str, *, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """Makes a published variant and its state, by name.

    **Arguments:**

    - `name`: one of `levitax.VARIANTS`, such as `"levit_256"`, in upper or lower case, with `-` or `_`.
    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][], such as `num_classes`.

    **Returns:** the model, in training mode, and its state.

    **Raises:** `TypeError` if `name` is not a string; `ValueError` for an unknown name, and `TypeError` for an unknown
    keyword, both naming the nearest; and the errors of [`levitax.LeViT`][].
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` is {name!r}; expected the name of a variant, such as 'levit_256'.")
    canonical = name.lower().replace("-", "_")
    as_choice("name", canonical, VARIANTS)
    check_keywords(overrides, Overrides)
    keywords: LeViTKeywords = {**VARIANTS[canonical], **overrides}
    return eqx.nn.make_with_state(LeViT)(**keywords, key=key)


def _variant(function: Variant) -> Variant:
    defaults = LeViTConfig(**VARIANTS[function.__name__]).to_dict()
    return spelled_out(Overrides, defaults=defaults)(function)


@_variant
def levit_128s(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-128S from the paper: 7.8 M parameters, 0.31 GMAC, 76.6 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_128s", key=key, **overrides)


@_variant
def levit_128(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-128 from the paper: 9.2 M parameters, 0.41 GMAC, 78.6 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_128", key=key, **overrides)


@_variant
def levit_192(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-192 from the paper: 10.9 M parameters, 0.66 GMAC, 80.0 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_192", key=key, **overrides)


@_variant
def levit_256(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-256 from the paper: 18.9 M parameters, 1.13 GMAC, 81.6 % top-1 on ImageNet-1k as published.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_256", key=key, **overrides)


@_variant
def levit_384(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """LeViT-384 from the paper: 39.1 M parameters, 2.35 GMAC, 82.6 % top-1 on ImageNet-1k as published; drop path 0.1.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_384", key=key, **overrides)


@_variant
def levit_384_s8(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-384 with tokens of 8x8 pixels and SiLU: 39.1 M parameters, 9.96 GMAC, no published weights.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_384_s8", key=key, **overrides)


@_variant
def levit_512_s8(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-512 with tokens of 8x8 pixels, SiLU and one head: 74.0 M parameters, 21.8 GMAC, no published
    weights.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_512_s8", key=key, **overrides)


@_variant
def levit_512(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-512, a wider LeViT with SiLU and one head: 95.2 M parameters, 5.62 GMAC, no published weights.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_512", key=key, **overrides)


@_variant
def levit_256d(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-256d, a deeper LeViT-256 with SiLU and one head: 26.2 M parameters, 1.40 GMAC, no published weights.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_256d", key=key, **overrides)


@_variant
def levit_512d(*, key: PRNGKeyArray, **overrides: Unpack[Overrides]) -> tuple[LeViT, eqx.nn.State]:
    """timm's LeViT-512d, a deeper LeViT with SiLU and one head: 92.5 M parameters, 5.84 GMAC, no published weights.

    **Arguments:**

    - `key`: draws the initial weights.
    - `overrides`: any of [`levitax.Overrides`][].

    **Returns:** the model, in training mode, and its state.
    """
    return create_model("levit_512d", key=key, **overrides)
