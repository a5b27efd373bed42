import importlib
from types import ModuleType


def extra(name: str) -> str:
    """The way out where a package of an extra is missing."""
    return f'run `pip install "levitax[{name}]"`'


def require(module: str, user: str, way_out: str) -> ModuleType:
    """Imports an optional package, or says who needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Not where the package is there and lacks one of its own.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ModuleNotFoundError(f"{user} needs {module.split('.')[0]}: {way_out}.", name=error.name) from None
