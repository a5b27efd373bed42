"""Reads and writes weights: the published checkpoints of every implementation, and our own files."""

import lazy_loader


# `__init__.pyi` lists the names. Each is imported on first use, so that the help of the command needs no JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
