import sys
from typing import Any

import jax

from ._extras import extra, require


def progress_bar(images: int, done: int = 0, *, delay: float = 0.0) -> Any:
    """A progress bar that counts images, shown by the first process on a terminal or in a notebook, after `delay`
    seconds."""
    tqdm = require("tqdm", "A progress bar", extra("train")).tqdm
    if jax.process_index() != 0:
        return tqdm(disable=True)
    # A notebook is no terminal, but shows a bar. On the stream of the lines that `say` prints, it stays below them.
    # Elsewhere, `None` hides the bar if the output goes into a file.
    where = {"file": sys.stdout, "disable": False} if _in_notebook() else {"disable": None}
    return tqdm(total=images, initial=done, unit="img", delay=delay, **where)


def say(line: str) -> None:
    """Prints a line, above a progress bar if there is one."""
    if jax.process_index() == 0:
        require("tqdm", "A progress bar", extra("train")).tqdm.write(line)


def _in_notebook() -> bool:
    # IPython is imported already if this process is a notebook's kernel.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
