"""How the scripts here take arguments, and how they tell what is wrong with them."""

import argparse
import contextlib
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import levitax


@contextlib.contextmanager
def needs_examples() -> Iterator[None]:
    """Around imports of packages that not all who have levitax have."""
    try:
        yield
    except ModuleNotFoundError as error:
        script = Path(sys.argv[0]).name
        sys.exit(f'{script}: error: {error.name} is not installed: run `pip install "levitax[examples]"`')


@contextlib.contextmanager
def mistakes_in_a_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Tells what these scripts, levitax or the system refuse in a line, warnings too; all else comes with its
    traceback."""
    default_format = warnings.formatwarning

    def format_warning(message, category, *where) -> str:
        return f"{parser.prog}: {message}\n" if category is UserWarning else default_format(message, category, *where)

    warnings.formatwarning = format_warning
    try:
        yield
    except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        if not isinstance(error, OSError) and not _is_ours(error):
            raise
        # Not `parser.error`, which shows all options before it.
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        warnings.formatwarning = default_format


def _is_ours(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    source = Path(frame.f_code.co_filename)
    return source.parent == Path(__file__).parent or frame.f_globals["__name__"].split(".")[0] == "levitax"


def picture_path(text: str) -> Path:
    """A path that a picture can be written to: to be told before the work, not after it."""
    # Here, as not all of the scripts need it.
    from matplotlib.backend_bases import FigureCanvasBase

    path, kinds = Path(text), FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(f'.{kind}' for kind in kinds)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


class Size(argparse.Action):
    """One number, or height and width."""

    def __call__(self, parser, namespace, values, option_string=None):
        sizes = tuple(values or ())
        if len(sizes) not in (1, 2):
            parser.error(f"{option_string} takes one number, or two: height and width")
        setattr(namespace, self.dest, sizes[0] if len(sizes) == 1 else sizes)


def add_image_size_argument(parser: argparse.ArgumentParser) -> None:
    """What `size_of` takes."""
    parser.add_argument(
        "--image-size", type=int, nargs="+", action=Size, metavar="PIXELS", help="one number, or height and width"
    )


def size_of(arguments: argparse.Namespace) -> levitax.Overrides:
    """What the command line wants of the model's size."""
    return {} if arguments.image_size is None else {"image_size": arguments.image_size}
