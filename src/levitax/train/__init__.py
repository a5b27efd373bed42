"""Training as pure functions over one PyTree of state. Needs `pip install "levitax[train]"`."""

from typing import Any

import lazy_loader


# `__init__.pyi` lists the names. Each is imported on first use, so that the help of the command needs no JAX.
_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _import(name)
    except ModuleNotFoundError as error:
        if error.name != "optax":
            raise
        message = '`levitax.train` needs optax: run `pip install "levitax[train]"`.'
        raise ModuleNotFoundError(message, name="optax") from error
