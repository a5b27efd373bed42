"""LeViT for JAX: immutable Equinox PyTrees, explicit state, shapes in the signatures."""

from importlib.metadata import version as _version

import lazy_loader


# `__init__.pyi` lists the names. Each is imported on first use, so that importing levitax is instant.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = _version("levitax")
