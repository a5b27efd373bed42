import importlib
from types import ModuleType


def extra(name: str) -> str:
    """How to install the packages of an extra."""
    return f'run `pip install "levitax[{name}]"`'


def require(module: str, user: str, way_out: str) -> ModuleType:
    """Imports an optional package. If it is missing, the error says who needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # If a dependency of the package is missing instead, the original error says so.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ModuleNotFoundError(f"{user} needs {module.split('.')[0]}: {way_out}.", name=error.name) from None
