"""The published variants by name: their keywords, and where their weights are."""

from collections.abc import Mapping
from types import MappingProxyType

from ._config import LeViTKeywords


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


PRETRAINED: Mapping[str, str] = MappingProxyType(
    {name: f"timm/{name}.fb_dist_in1k" for name in ("levit_128s", "levit_128", "levit_192", "levit_256", "levit_384")}
)
"""The repository on the Hugging Face hub with the published weights of a variant, by name. These are the paper's
weights, trained on ImageNet-1k with distillation, as timm stores them."""
