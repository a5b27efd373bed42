import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator

from .._extras import extra


@contextlib.contextmanager
def errors_in_a_line(program: str) -> Iterator[None]:
    """Prints errors of levitax and of the system in one line, and warnings too. Other errors keep their traceback.

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
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        _leave(program, error, 2)
    except (FloatingPointError, ModuleNotFoundError, TypeError, ValueError) as error:
        if not _is_ours(error):
            raise
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            _leave(program, f"{error.name} is not installed: {extra('cli')}", 2)
        _leave(program, error, 1 if isinstance(error, FloatingPointError) else 2)
    finally:
        warnings.formatwarning = default_format


def _leave(program: str, message: object, code: int) -> None:
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(code)


def _is_ours(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].split(".")[0] == "levitax"
