"""The commands by name. Their modules import JAX when they run, so that help opens at once."""

import os
from typing import Annotated

import cyclopts
from cyclopts import App, Parameter

import levitax

from ._benchmark import benchmark
from ._convert import convert
from ._embed import embed
from ._errors import errors_in_a_line
from ._evaluate import evaluate
from ._export import export
from ._finetune import finetune
from ._predict import predict
from ._summary import summary
from ._train import train


_COMMANDS = (train, finetune, evaluate, predict, embed, export, convert, summary, benchmark)

app = App(
    name="levitax",
    help="LeViT for JAX: training, inference and export. Each command has its own --help.",
    help_format="markdown",
    version=levitax.__version__,
    default_parameter=Parameter(negative_iterable=(), negative_none=()),
)
for number, command in enumerate(_COMMANDS):
    app.command(command, sort_key=number)
app.register_install_completion_command(help="Install completion for your shell.")

_RAISING = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(help="Show the traceback of an error.", negative=())] = False,
) -> None:
    del debug  # `run` reads it.
    app(tokens, **_RAISING)


def run(given: list[str]) -> None:
    """Runs a command. Errors end the process."""
    given = [_expanded(token) for token in given]
    # Its warnings repeat what the error says.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    program = f"levitax {given[0]}" if given and given[0] in app else "levitax"
    with errors_in_a_line(program, usage=cyclopts.CycloptsError, debug="--debug" in given):
        app.meta(given, **_RAISING)


def _expanded(token: str) -> str:
    """Expands `~`, also after the `=` of an option, where most shells leave it as it is."""
    option, equals, value = token.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(token)
