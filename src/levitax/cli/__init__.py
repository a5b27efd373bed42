"""The command `levitax`. Needs `pip install "levitax[cli]"`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ._errors import errors_in_a_line


_COMMANDS = {
    "train": "trains a model from scratch",
    "finetune": "fine-tunes a trained model, or trains a new head on it",
    "evaluate": "evaluates weights on a data set, or writes a teacher's logits",
    "predict": "classifies images",
    "export": "writes a model for another runtime, and checks the file",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments, by default the arguments of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    overview = "\n".join(f"  {name:10} {what}" for name, what in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="levitax",
        description=f"LeViT for JAX.\n\n{overview}\n\nEach command has its own --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
    name = parser.parse_args(given[:1]).command
    with errors_in_a_line(f"levitax {name}"):
        # Imported here, so that a missing package is an error of this command alone.
        import_module(f"{__name__}._{name}").main(given[1:])
