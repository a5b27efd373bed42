"""How the scripts here take arguments, and report what is wrong with them."""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import levitax
from levitax.data import Preprocessing


@contextlib.contextmanager
def needs_examples() -> Iterator[None]:
    """Names, in a line, a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        script = Path(sys.argv[0]).name
        sys.exit(f'{script}: error: {error.name} is not installed: run `pip install "levitax[examples]"`')


@contextlib.contextmanager
def mistakes_in_a_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Prints errors of these scripts, levitax and the system in a line, and warnings too. Other errors keep their
    traceback. A reader that closes the pipe, such as `head`, ends the script without an error."""
    default_format = warnings.formatwarning

    def format_warning(message, category, *where) -> str:
        return f"{parser.prog}: {message}\n" if category is UserWarning else default_format(message, category, *where)

    warnings.formatwarning = format_warning
    try:
        yield
        if sys.stdout is not None:  # Closed by the caller.
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
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


def seed(text: str) -> int:
    """What the random numbers of a run begin with."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{number} is out of range; expected a number from 0 to {2**32 - 1}")
    return number


def picture_path(text: str) -> Path:
    """Checks before the work starts that an image can be written to a path."""
    # Here, as not all of the scripts need it.
    from matplotlib.backend_bases import FigureCanvasBase

    path, kinds = Path(text), FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(f'.{kind}' for kind in kinds)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which replaces `path` at the end. Readers see the old file whole, or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    temporary.replace(path)


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


def add_preprocessing_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """What `preprocessing_of` and `with_options` take."""
    of = "of each channel's pixels in [0, 1]"
    parser.add_argument("--mean", type=float, nargs="+", help=f"{of}; by default {default}")
    parser.add_argument("--std", type=float, nargs="+", help=of)
    parser.add_argument("--crop-ratio", type=float, help="part of the resized image that is kept, 1 for all")


def with_options(preprocessing: Preprocessing, arguments: argparse.Namespace) -> Preprocessing:
    """The preprocessing with what the command line changes in it."""
    return dataclasses.replace(preprocessing, **_preprocessing_options(arguments))


def preprocessing_of(weights: str, image_size: tuple[int, int], arguments: argparse.Namespace) -> Preprocessing:
    """The preprocessing of weights, for images of a size, with what the command line changes in it."""
    options = _preprocessing_options(arguments)
    try:
        preprocessing = levitax.load_preprocessing(weights)
    except ValueError as error:
        if len(options) < 3:
            raise ValueError(f"{error} Or pass --mean, --std and --crop-ratio.") from None
        preprocessing = Preprocessing()
    return dataclasses.replace(preprocessing, image_size=image_size, **options)


def _preprocessing_options(arguments: argparse.Namespace) -> dict[str, float | list[float]]:
    options = {name: getattr(arguments, name) for name in ("mean", "std", "crop_ratio")}
    return {name: value for name, value in options.items() if value is not None}
