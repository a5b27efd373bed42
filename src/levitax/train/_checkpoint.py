import atexit
import contextlib
import itertools
import json
import logging
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils

from .._array_checks import as_number
from .._checks import as_integer
from .._extras import extra, require
from .._files import as_path
from .._keys import key_numbers, with_numbers
from ._state import TrainState


# Size and checksum of every file of a checkpoint, in the folder of each. Orbax reports a truncated file, with much
# noise, and does not notice a changed byte.
_MANIFEST = "levitax_files.json"

_ABSENT = object()


class Restored(NamedTuple):
    """A restored checkpoint, from [`levitax.train.Checkpoints`][].

    **Attributes:**

    - `train_state`: as saved.
    - `progress`: the progress that was saved with the train state, as JSON returns it.
    """

    train_state: TrainState
    progress: dict[str, Any]


class Best(NamedTuple):
    """The step with the largest score so far.

    **Attributes:**

    - `step`: its number.
    - `score`: as given to [`levitax.train.Checkpoints.save`][].
    """

    step: int
    score: float


class _Saved(NamedTuple):
    """The last save or restore, without the arrays. The progress is text, since NaN differs from itself."""

    step: int
    progress: str
    score: float | None


class _Content(NamedTuple):
    """The content of a checkpoint in addition to the arrays."""

    arrays: dict[str, str]
    progress: dict[str, Any]
    score: float | None
    best: Best | None


class Checkpoints:
    """The checkpoints of a run in a folder: the latest and the best.

    ```python
    with Checkpoints(folder, description={"model": model.config.to_dict()}) as checkpoints:
        restored = checkpoints.restore(train_state)
        ...
        checkpoints.save(train_state, {"epoch": epoch}, score=accuracy)
    ```

    Orbax writes the checkpoints in the background, each completely or not at all. Checksums detect checkpoints that
    were corrupted later; these are renamed and skipped. The numbers of processes and devices may differ between writing
    and reading. All processes call the same methods with the same arguments.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, description: Mapping[str, Any] | None = None, max_to_keep: int = 2
    ):
        """**Arguments:**

        - `folder`: contains nothing but checkpoints, and is made if missing. All processes must see the same folder.
        - `description`: identifies the run, for example by configuration and recipe. It must be JSON: dictionaries with
            strings as keys, lists (tuples become lists), strings, finite numbers, booleans and `None`. A checkpoint
            with another description is refused.
        - `max_to_keep`: how many of the latest checkpoints stay, in addition to the best.

        **Raises:** `ValueError` if the newest readable checkpoint has another description, with the differences, and
        for a URL as `folder`; `NotADirectoryError` if it is a file; `TypeError` or `ValueError` for a `description`
        that JSON would change and a `max_to_keep` that is not a positive integer; `ModuleNotFoundError` without Orbax.
        """
        self.folder = as_path("folder", folder).resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"`folder` is `{self.folder}`, a file; expected a folder, or a path to make one.")
        # NaN differs from itself, so that every checkpoint would be of another run.
        self._description = _as_json("description", {} if description is None else description, finite=True)
        self._max_to_keep = as_integer("max_to_keep", max_to_keep)
        self._best: Best | None = None
        # The previous best, which stays until a new best is saved.
        self._best_before: Best | None = None
        self._saving: int | None = None
        self._last: _Saved | None = None
        self._manager = self._open()
        self._is_open = True
        atexit.register(self._warn_of_loss)
        # Read before the first save, which could replace the best one, or another run's.
        for step in self._steps():
            if _agreed_damage(self.folder / str(step)) is None:
                self._best = self._read_content(step).best
                break
        self._forget_a_lost_best()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def best(self) -> Best | None:
        """The step with the largest score, and that score; `None` if no score was given."""
        return self._best

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint whose files all match their checksums. Waits for a save in progress."""
        self.wait()
        folders = (self.folder / str(step) for step in self._steps())
        return next((folder for folder in folders if _damage(folder) is None), None)

    def save(self, train_state: TrainState, progress: Mapping[str, Any], *, score: float | None = None) -> None:
        """Starts a save, and returns once the arrays are copied.

        If a save fails (disk full, for example), it warns and keeps the earlier checkpoints. Saving a step again with
        the same progress and score, or without a score, writes nothing.

        **Arguments:**

        - `train_state`: saved whole. Its step names the checkpoint.
        - `progress`: other values that the run needs to resume, in JSON like `description`; here numbers may be NaN.
        - `score`: a finite number by which [`levitax.train.Checkpoints.best`][] is chosen, the larger the better.

        **Raises:** `TypeError` for `progress` that JSON would change; `ValueError` for a `score` that is not a finite
        number, after `close`, and if there are checkpoints of later steps. `ValueError` also if this step has a
        checkpoint that is from another run, or that has other progress or another score.
        """
        if not self._is_open:
            raise ValueError(f"The `Checkpoints` of `{self.folder}` are closed. Save before `close`, or make new ones.")
        self.wait()
        orbax = _orbax()
        step, progress, arrays = int(train_state.step), _as_json("progress", progress), _to_arrays(train_state)
        score = as_number("score", score, -math.inf, math.inf, optional=True)
        saved = _Saved(step, json.dumps(progress), score)
        newest = next(iter(self._steps()), -1)
        if step in self._steps():
            self._check_same(saved)
            return
        if step < newest:
            raise ValueError(
                f"The train state is at step {step}, but `{self.folder}` has a checkpoint of step {newest}. Resume "
                "from that one with `restore`, or choose another folder."
            )
        self._best_before = self._best
        if score is not None and (self._best is None or score > self._best.score):
            self._best = Best(step, score)
        content = {
            "description": self._description,
            "arrays": _shapes(arrays),
            "progress": progress,
            "score": score,
            "best": self._best,
        }
        needed = sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(self.folder).free
        with self._reporting(step):
            # Checked before, since Orbax fails with thousands of lines, and leaves what it has written.
            if scarce := _everywhere(f"{needed:,} bytes needed, {free:,} free" if free < 1.1 * needed else None):
                raise OSError(f"no space left: {scarce}")
            self._saving = step
            args = {"arrays": orbax.args.StandardSave(arrays), "content": orbax.args.JsonSave(content)}
            self._manager.save(step, args=orbax.args.Composite(**args))
            self._last = saved

    def wait(self) -> None:
        """Waits until the current save is complete."""
        if self._saving is not None:
            with self._reporting(self._saving):
                self._manager.wait_until_finished()
            self._saving = None

    def restore(self, like: TrainState, *, step: int | None = None) -> Restored | None:
        """Reads the newest checkpoint that is not corrupt.

        Corrupt checkpoints are renamed and skipped, with a warning that names them.

        **Arguments:**

        - `like`: a train state of the same structure, such as the initial one. It stays usable. The restored train
            state is on the same devices.
        - `step`: read only the checkpoint of this step, such as `checkpoints.best.step`.

        **Returns:** train state and progress; `None` if there is no checkpoint, or none of `step` that is readable.

        **Raises:** `ValueError` for a checkpoint of another description or structure, with the differences; `OSError`
        if all checkpoints are corrupt; these are not renamed.
        """
        self.wait()
        orbax = _orbax()
        wanted = None if step is None else as_integer("step", step, minimum=0)
        steps = [one for one in self._steps() if wanted in (None, one)]
        damages = {}
        for one in steps:
            damage = _agreed_damage(self.folder / str(one))
            if damage is None:
                content = self._read_content(one)
                differences = _differences(content.arrays, _shapes(_to_arrays(like)))
                if differences:
                    raise ValueError(
                        f"The checkpoint `{self.folder / str(one)}` belongs to another model or optimiser: "
                        f"{'; '.join(differences[:8])}{'; ...' if differences[8:] else ''}."
                    )
                self._set_aside(damages)
                args = orbax.args.StandardRestore(jax.tree.map(_abstract, _to_arrays(like)))
                arrays = self._manager.restore(one, args=orbax.args.Composite(arrays=args))["arrays"]
                self._last = _Saved(one, json.dumps(content.progress), content.score)
                return Restored(_from_arrays(like, arrays), content.progress)
            damages[one] = damage
        if step is not None:
            self._set_aside(damages)
        elif damages:
            listed = "; ".join(f"{one}: {damage}" for one, damage in damages.items())
            raise OSError(
                f"All {len(damages)} checkpoints in `{self.folder}` are corrupt ({listed}). Start again in another "
                "folder."
            )
        return None

    def close(self) -> None:
        """Waits for the current save, and releases the folder. A program that ends without `close` may lose the last
        save."""
        if self._is_open:
            self._is_open = False
            atexit.unregister(self._warn_of_loss)
            self.wait()
            self._manager.close()

    def _warn_of_loss(self):
        """Called at the end of the program, when Orbax can start no more threads."""
        if self._saving is not None and not (self.folder / str(self._saving)).exists():
            _warn(
                f"The checkpoint of step {self._saving} was lost, because the program ended before it was saved. Call "
                "`close`, or use `with Checkpoints(...) as checkpoints`."
            )

    def _open(self):
        orbax = _orbax()
        managers = require("orbax.checkpoint.checkpoint_managers", "`levitax.train.Checkpoints`", extra("train"))
        checkpoints = self

        class BestStep(managers.PreservationPolicy):
            def should_preserve(self, infos, *, context):
                del context
                best = [one.step for one in (checkpoints._best, checkpoints._best_before) if one is not None]
                return [info.step in best for info in infos]

        options = orbax.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(self._max_to_keep), BestStep()]),
            async_options=orbax.AsyncOptions(post_finalization_callback=self._write_manifest),
            cleanup_tmp_directories=True,
        )
        return orbax.CheckpointManager(self.folder, options=options)

    @contextlib.contextmanager
    def _reporting(self, step):
        try:
            yield
        except Exception as error:
            # Its type depends on the place in Orbax. Training continues in any case.
            self._saving, self._best = None, self._best_before
            with contextlib.suppress(Exception):
                self._manager.close()
            self._manager = self._open()
            latest = self.latest
            last = f"The last good one is `{latest}`" if latest else "There is none before it"
            _warn(f"The checkpoint of step {step} could not be saved ({error}). {last}.")

    def _write_manifest(self):
        """Called by Orbax before it gives the folder its final name."""
        if jax.process_index() == 0:
            (folder,) = self.folder.glob(f"{self._saving}.*tmp*")
            (folder / _MANIFEST).write_text(json.dumps(_checksums(folder)))

    def _steps(self):
        """The saved steps, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def _read_content(self, step):
        orbax = _orbax()
        args = orbax.args.Composite(content=orbax.args.JsonRestore())
        content = self._manager.restore(step, args=args)["content"]
        differences = _differences(content["description"], self._description)
        if differences:
            raise ValueError(
                f"The checkpoints in `{self.folder}` belong to another run: {'; '.join(differences)}. Resume with the "
                "settings they were made with, or choose another folder."
            )
        best = None if content["best"] is None else Best(*content["best"])
        # Older checkpoints have no score of their own.
        return _Content(content["arrays"], content["progress"], content.get("score"), best)

    def _check_same(self, saved):
        """Raises unless nothing is lost by leaving the checkpoint of this step as it is."""
        folder, last = self.folder / str(saved.step), self._last
        if last is None or last.step != saved.step:
            raise ValueError(
                f"`{folder}` was written by another run, or earlier in this one. Resume from the newest with "
                "`restore`, or choose another folder."
            )
        if last.progress != saved.progress or saved.score not in (None, last.score):
            raise ValueError(
                f"`{folder}` was saved before with other progress or another score ({last.score}, now {saved.score}), "
                "and stays as it is. Pass both to the first `save` of a step."
            )

    def _forget_a_lost_best(self):
        if self._best is not None and self._best.step not in self._steps():
            _warn(
                f"The best checkpoint, of step {self._best.step}, is no longer in `{self.folder}`. The next scores "
                "decide which is the best."
            )
            self._best = None

    def _set_aside(self, damages):
        for step, damage in damages.items():
            folder = self.folder / str(step)
            names = itertools.chain([f"corrupt-{step}"], (f"corrupt-{step}-{number}" for number in itertools.count(2)))
            aside = next(self.folder / name for name in names if not (self.folder / name).exists())
            _warn(f"The checkpoint `{folder}` is corrupt ({damage}). It was renamed to `{aside.name}` and skipped.")
            if jax.process_index() == 0:
                folder.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("corrupt")
        if damages:
            self._manager.reload()
            self._forget_a_lost_best()


def _warn(message: str) -> None:
    """Warns in the first process, for all of them."""
    if jax.process_index() == 0:
        warnings.warn(message, stacklevel=2)


def _orbax():
    # It logs every step it takes; what matters is a warning of ours.
    logging.getLogger("absl").addFilter(_not_of_orbax)
    return require("orbax.checkpoint", "`levitax.train.Checkpoints`", extra("train"))


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _to_arrays(train_state: TrainState) -> dict[str, Any]:
    """Each array by its path, with keys as the numbers they are made of."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(train_state, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): key_numbers(leaf) for path, leaf in leaves}


def _shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Shape and dtype of each array, in JSON."""
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _from_arrays(like: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    def put(path, leaf):
        if not eqx.is_array(leaf):
            return leaf
        return with_numbers(leaf, arrays[jax.tree_util.keystr(path, simple=True, separator=".")])

    return jax.tree_util.tree_map_with_path(put, like)


def _abstract(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=getattr(array, "sharding", None))


def _as_json(name: str, value: Any, *, finite: bool = False) -> Any:
    """A mapping as JSON returns it. Raises for values that JSON would change, and with `finite` for numbers that are
    not finite."""
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` is of type `{type(value).__name__}`; expected a mapping, such as a dictionary.")
    _check_json(name, value, finite)
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` cannot be saved as JSON: {error}.") from None


def _check_json(name, value, finite):
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"`{name}` has the key {key!r}, which JSON would turn into a string: use {str(key)!r}.")
            _check_json(f"{name}.{key}", item, finite)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(name, item, finite)
    elif finite and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` is {value}; expected a finite number.")


def _differences(saved: Any, here: Any, path: str = "") -> list[str]:
    """Lists the differences of two descriptions."""
    if isinstance(saved, dict) and isinstance(here, dict):
        names = [*saved, *(name for name in here if name not in saved)]
        return [
            line
            for name in names
            for line in _differences(
                saved.get(name, _ABSENT), here.get(name, _ABSENT), f"{path}.{name}" if path else name
            )
        ]
    show = lambda value: "absent" if value is _ABSENT else json.dumps(value)
    return [] if saved == here else [f"`{path}` was {show(saved)} and is {show(here)}"]


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of each file of arrays and content, by path. Orbax changes the other files later."""
    files = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    return {str(path.relative_to(folder)): _checksum(path) for path in files}


def _checksum(path):
    size = crc = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]


def _damage(folder: Path) -> str | None:
    """Describes the first corrupt file of a checkpoint; `None` if all are intact."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    found = _checksums(folder)
    for name, (size, crc) in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name][0] != size:
            return f"{name} has {found[name][0]} bytes of {size}"
        if found[name][1] != crc:
            return f"{name} has changed"
    return None


def _agreed_damage(folder: Path) -> str | None:
    """The result of `_damage` in the first process, for all processes."""
    return _everywhere(_damage(folder) if jax.process_index() == 0 else None)


def _everywhere(message: str | None) -> str | None:
    """The message of the first process, in all processes."""
    if jax.process_count() == 1:
        return message
    text = np.frombuffer((message or "").encode()[:256].ljust(256), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(text)).decode(errors="replace").strip() or None
