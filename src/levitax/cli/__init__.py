"""The command `levitax`. Needs `pip install "levitax[cli]"`."""

import sys
from collections.abc import Sequence

from .._extras import extra


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments, by default the arguments of the process."""
    try:
        from ._app import run
    except ModuleNotFoundError as error:
        if error.name != "cyclopts":
            raise
        print(f"levitax: error: the command needs cyclopts: {extra('cli')}.", file=sys.stderr)
        sys.exit(1)
    run(sys.argv[1:] if arguments is None else list(arguments))
