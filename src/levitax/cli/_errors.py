import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator

from .._extras import extra


class UsageError(Exception):
    """Options that contradict one another, or have no such value."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turns errors of levitax about the options into a `UsageError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def errors_in_a_line(program: str, *, usage: type[Exception] = UsageError, debug: bool = False) -> Iterator[None]:
    """Prints errors and warnings in one line, and ends the process: with status 2 for a `UsageError` or an error of the
    class `usage`, with 1 for other errors. With `debug`, errors keep their traceback.

    If the reader of a pipe closes it, as `head` does, the process ends without an error.
    """
    default_format = warnings.formatwarning

    def format_warning(message, category, *where) -> str:
        return f"{program}: {message}\n" if category is UserWarning else default_format(message, category, *where)

    warnings.formatwarning = format_warning
    try:
        yield
        if sys.stdout is not None:  # Closed by the caller.
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + 13)  # SIGPIPE, which Windows does not have.
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if debug:
            raise
        print(f"{program}: error: {_in_a_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError | usage) else 1)
    finally:
        warnings.formatwarning = default_format


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and "pip install" not in text and _is_ours(error):
        return f"{error.name} is not installed: {extra('cli')}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"`{error.filename}`: {error.strerror}. Check the path and its permissions, or pass another path."
    if isinstance(error, OSError | UsageError) or _is_ours(error):
        return text
    # Of JAX or another package: the first line says what, and its name says who.
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first} (--debug shows the traceback)"


def _is_ours(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] in ("levitax", "cyclopts")
