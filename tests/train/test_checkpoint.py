import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from levitax.train import Checkpoints, TrainState
from tests.equality import tree_equal


OPTIMIZER = optax.adam(1e-3)
SMALL = {"image_size": 8, "stages": 1, "dim": 16, "heads": 1}


@pytest.fixture
def train_state(make, randomise, key) -> TrainState:
    model, state = randomise(*make(**SMALL))
    return TrainState(model, state, OPTIMIZER, ema_decay=0.9, key=key)


@pytest.fixture
def fresh(make) -> TrainState:
    """The train state with which a resumed run starts, before it restores."""
    model, state = make(**SMALL)
    return TrainState(model, state, OPTIMIZER, ema_decay=0.9, key=jax.random.key(1))


def at(train_state: TrainState, step: int) -> TrainState:
    """Returns the train state after `step` steps, each of which adds 1 to the bias of the head."""
    where = lambda train_state: (train_state.step, train_state.model.head.classification.bias)
    return eqx.tree_at(where, train_state, (jnp.int32(step), jnp.full(5, step, jnp.float32)))


def save(folder: Path, train_state: TrainState, *steps: int, keep: int = 2, scores=None) -> None:
    with Checkpoints(folder, max_to_keep=keep) as checkpoints:
        for step in steps:
            score = None if scores is None else scores[step]
            checkpoints.save(at(train_state, step), {"number": step}, score=score)


def restore(folder: Path, like: TrainState) -> TrainState:
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(like)
        assert restored is not None and restored.progress == {"number": int(restored.train_state.step)}
        return restored.train_state


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_saved_and_restored_train_states_are_equal(train_state, fresh, tmp_path):
    progress = {"history": [{"loss": 0.1 + 0.2}], "losses": [1e-30, 3]}
    with Checkpoints(tmp_path / "run", description={"seed": 0}) as checkpoints:
        assert checkpoints.restore(fresh) is None and checkpoints.latest is None
        checkpoints.save(at(train_state, 3), progress)
        checkpoints.wait()
        assert checkpoints.latest == tmp_path / "run" / "3"
    with Checkpoints(tmp_path / "run", description={"seed": 0}) as checkpoints:
        restored = checkpoints.restore(fresh)
    assert restored is not None
    assert tree_equal(restored.train_state, at(train_state, 3))
    assert restored.progress == progress
    assert not tree_equal(fresh, at(train_state, 3))


def test_the_last_checkpoints_and_the_best_are_kept(train_state, fresh, tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.3}
    save(tmp_path, train_state, *scores, scores=scores)
    assert names(tmp_path) == {"2", "4", "5"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(fresh)
        assert checkpoints.best == (2, 0.9)
        checkpoints.save(at(train_state, 6), {"number": 6}, score=0.95)
        checkpoints.save(at(train_state, 7), {"number": 7})
        checkpoints.save(at(train_state, 8), {"number": 8})
        assert checkpoints.best == (6, 0.95)
    assert names(tmp_path) == {"6", "7", "8"}


def test_every_kept_checkpoint_can_be_restored(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1, 2, 3, scores={1: 0.9, 2: 0.1, 3: 0.2})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == (1, 0.9)
        best = checkpoints.restore(fresh, step=1)
        assert best is not None and tree_equal(best.train_state, at(train_state, 1))
        assert checkpoints.restore(fresh, step=4) is None


def test_a_corrupt_checkpoint_restores_nothing(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1, 2)
    truncate(tmp_path / "1")
    with Checkpoints(tmp_path) as checkpoints, pytest.warns(UserWarning, match="/1` is corrupt"):
        assert checkpoints.restore(fresh, step=1) is None
    assert names(tmp_path) == {"corrupt-1", "2"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("step", "kind"), [("1", TypeError), (1.0, TypeError), (True, TypeError), (-1, ValueError)])
def test_steps_are_numbers(step, kind, train_state, fresh, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(kind, match=r"`step` is .*; expected an integer of at least 0"):
            checkpoints.restore(fresh, step=step)


def test_a_step_before_the_latest_is_not_saved(train_state, tmp_path):
    save(tmp_path, train_state, 5)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"at step 3, but .* a checkpoint of step 5. Resume from that one"):
            checkpoints.save(at(train_state, 3), {"number": 3})


def test_progress_that_cannot_be_saved_is_an_error_not_a_warning(train_state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(train_state, {"loss": jnp.float32(1)})
    with pytest.raises(ValueError, match="`max_to_keep` is 0"):
        Checkpoints(tmp_path, max_to_keep=0)


def test_saving_an_existing_step_again_changes_nothing(train_state, fresh, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for score in (0.5, 0.5, None):
            checkpoints.save(at(train_state, 1), {"number": 1}, score=score)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(fresh)
        assert restored is not None
        checkpoints.save(restored.train_state, restored.progress, score=0.5)
    assert tree_equal(restore(tmp_path, fresh), at(train_state, 1))


@pytest.mark.parametrize(
    ("progress", "score", "scores"),
    [
        ({"number": 1}, 0.9, r"\(0\.5, now 0\.9\)"),
        ({"number": 1}, 0.1, r"\(0\.5, now 0\.1\)"),
        ({"number": 2}, None, ""),
    ],
    ids=("better", "worse", "progress"),
)
def test_an_existing_step_is_not_saved_with_other_progress_or_another_score(
    progress, score, scores, train_state, fresh, tmp_path
):
    message = f"/1` was saved before with other progress or another score {scores}.*first `save` of a step"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(train_state, 1), {"number": 1}, score=0.5)
        with pytest.raises(ValueError, match=message):
            checkpoints.save(at(train_state, 1), progress, score=score)
        assert checkpoints.best == (1, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(fresh)
        with pytest.raises(ValueError, match=message):
            checkpoints.save(at(train_state, 1), progress, score=score)


def test_a_first_score_for_an_existing_step_is_refused(train_state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(train_state, 1), {"number": 1})
        with pytest.raises(ValueError, match=r"another score \(None, now 0\.9\)"):
            checkpoints.save(at(train_state, 1), {"number": 1}, score=0.9)
        assert checkpoints.best is None


def test_a_step_of_another_run_is_not_taken_for_one_of_this_run(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"/1` was written by another run.*`restore`, or choose another folder"):
            checkpoints.save(at(fresh, 1), {"number": 1})
    assert tree_equal(restore(tmp_path, fresh), at(train_state, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("score", (float("nan"), float("inf"), -float("inf"), "0.9", True, [0.9]))
def test_scores_are_finite_numbers(score, train_state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"`score` is .*; expected a finite number or None"):
            checkpoints.save(train_state, {}, score=score)
        assert checkpoints.latest is None and checkpoints.best is None


@pytest.mark.usefixtures("unchecked")
def test_scores_may_be_numbers_of_numpy_and_jax(train_state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        scores: list[Any] = [np.float32(0.25), jnp.float32(0.5), 0]
        for step, score in enumerate(scores, 1):
            checkpoints.save(at(train_state, step), {}, score=score)
        assert checkpoints.best == (2, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == (2, 0.5)


def test_a_deleted_best_checkpoint_warns_and_is_chosen_anew(train_state, tmp_path):
    save(tmp_path, train_state, 1, 2, 3, scores={1: 0.9, 2: 0.1, 3: 0.2})
    shutil.rmtree(tmp_path / "1")
    with pytest.warns(UserWarning, match="The best checkpoint, of step 1, is no longer in"):
        checkpoints = Checkpoints(tmp_path)
    with checkpoints:
        assert checkpoints.best is None
        checkpoints.restore(train_state)
        checkpoints.save(at(train_state, 4), {}, score=0.3)
        assert checkpoints.best == (4, 0.3)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match=f"`folder` is `{tmp_path}/run`, a file; expected a folder"):
        Checkpoints(tmp_path / "run")


def test_nothing_is_saved_after_closing(train_state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at(train_state, 1), {"number": 1})
    checkpoints.close()
    checkpoints.close()
    with pytest.raises(ValueError, match=r"are closed. Save before `close`, or make new ones"):
        checkpoints.save(at(train_state, 2), {"number": 2})
    assert names(tmp_path) == {"1"}


UNCLOSED = """
import jax, levitax, optax
model, state = levitax.create_model("levit_128s", image_size=64, num_classes=2, key=jax.random.key(0))
optimizer = optax.sgd(0.1)
train_state = levitax.train.TrainState(model, state, optimizer, key=jax.random.key(0))
checkpoints = levitax.train.Checkpoints("run")
checkpoints.save(train_state, {})
"""


@pytest.mark.slow
def test_a_save_cut_off_by_the_end_of_the_program_is_reported(tmp_path):
    program = [sys.executable, "-c", UNCLOSED]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    saved = (tmp_path / "run" / "0").exists()
    assert saved or ("The checkpoint of step 0 was lost" in result.stderr and "Call `close`" in result.stderr)


@pytest.mark.parametrize("folder", ("gs://bucket/run", Path("s3://bucket/run"), "file:///tmp/run"), ids=str)
def test_a_url_is_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"`folder` is '.*', a URL; expected a path on this machine"):
        Checkpoints(folder)
    assert not any(tmp_path.iterdir())


def test_values_that_json_would_change_are_refused(train_state, tmp_path):
    nested = {"losses": [{3: 0.5}]}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=r"`progress\.losses` has the key 3, which JSON would turn into a string"):
            checkpoints.save(train_state, nested)
    with pytest.raises(TypeError, match=r"`description\.losses` has the key 3"):
        Checkpoints(tmp_path, description=nested)
    # NaN differs from itself, so a description with it would never match.
    with pytest.raises(ValueError, match=r"`description\.rate` is nan; expected a finite number"):
        Checkpoints(tmp_path, description={"rate": float("nan")})


def test_metrics_may_be_nan(train_state, fresh, tmp_path):
    with Checkpoints(tmp_path, description={"classes": ("cat", "dog")}) as checkpoints:
        for _ in range(2):
            checkpoints.save(train_state, {"loss": float("nan"), "best": float("inf")})
    with Checkpoints(tmp_path, description={"classes": ["cat", "dog"]}) as checkpoints:
        restored = checkpoints.restore(fresh)
    assert restored is not None and np.isnan(restored.progress["loss"]) and np.isposinf(restored.progress["best"])


def test_an_absent_value_differs_from_the_string_absent(train_state, tmp_path):
    with Checkpoints(tmp_path, description={"teacher": "absent"}) as checkpoints:
        checkpoints.save(train_state, {})
    with pytest.raises(ValueError, match='`teacher` was "absent" and is absent'):
        Checkpoints(tmp_path, description={})


def test_restored_arrays_have_the_sharding_of_the_new_run(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1)
    restored = restore(tmp_path, fresh)
    same = jax.tree.map(
        lambda one, other: one.sharding == other.sharding,
        *(eqx.filter(tree, eqx.is_array) for tree in (restored, fresh)),
    )
    assert all(jax.tree.leaves(same))


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


def delete_the_content(folder: Path) -> None:
    shutil.rmtree(folder / "content")


def delete_the_list(folder: Path) -> None:
    (folder / "levitax_files.json").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


damages = pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"bytes of"),
        (flip_a_bit, "has changed"),
        (delete_a_file, "is missing"),
        pytest.param(delete_the_content, "is missing", marks=pytest.mark.slow),
        pytest.param(delete_the_list, "cannot be read", marks=pytest.mark.slow),
        pytest.param(empty, "cannot be read", marks=pytest.mark.slow),
    ],
)


@damages
def test_the_latest_is_whole(damage, message, train_state, tmp_path):
    del message
    save(tmp_path, train_state, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == tmp_path / "2"
        damage(tmp_path / "2")
        assert checkpoints.latest == tmp_path / "1"
        truncate(tmp_path / "1")
        assert checkpoints.latest is None


@damages
def test_a_corrupt_checkpoint_is_set_aside_for_the_one_before(damage, message, train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1, 2)
    damage(tmp_path / "2")
    with pytest.warns(UserWarning, match=rf"(?s)/2` is corrupt \(.*{message}.*`corrupt-2` and skipped"):
        restored = restore(tmp_path, fresh)
    assert tree_equal(restored, at(train_state, 1))
    assert names(tmp_path) == {"1", "corrupt-2"}
    # The step can be saved again.
    save(tmp_path, train_state, 2)
    assert tree_equal(restore(tmp_path, fresh), at(train_state, 2))


def test_a_deleted_checkpoint_leaves_the_one_before(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1, 2)
    shutil.rmtree(tmp_path / "2")
    assert tree_equal(restore(tmp_path, fresh), at(train_state, 1))


def test_a_run_does_not_start_over_checkpoints_that_are_all_corrupt(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1, 2)
    for step in ("1", "2"):
        truncate(tmp_path / step)
    for _ in range(2):
        with pytest.raises(
            OSError, match=r"All 2 checkpoints in .* corrupt \(2: arrays/.* bytes of .*; 1: .*other folder"
        ):
            restore(tmp_path, fresh)
        assert names(tmp_path) == {"1", "2"}


def test_a_checkpoint_of_another_run_is_refused_with_the_differences(train_state, tmp_path):
    run = {"model": {"dim": (16,), "depth": 1}, "recipe": {"epochs": 3, "mixup": 0.8}, "seed": 0}
    with Checkpoints(tmp_path, description=run) as checkpoints:
        checkpoints.save(train_state, {})
    other = {"model": {"dim": (16,), "depth": 2}, "recipe": {"epochs": 5, "cutmix": 1.0}, "seed": 0}
    with pytest.raises(ValueError) as caught:
        Checkpoints(tmp_path, description=other)
    message = str(caught.value)
    for difference in (
        "`model.depth` was 1 and is 2",
        "`recipe.epochs` was 3 and is 5",
        "`recipe.mixup` was 0.8 and is absent",
        "`recipe.cutmix` was absent and is 1.0",
        "choose another folder",
    ):
        assert difference in message
    assert "seed" not in message and "dim" not in message


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(train_state, make, key, tmp_path):
    save(tmp_path, train_state, 1)
    model, state = make(**SMALL | {"dim": 24})
    wider = TrainState(model, state, OPTIMIZER, ema_decay=0.9, key=key)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"another model or optimiser: `model\.stem.*was .* and is .*; \.\.\."):
            checkpoints.restore(wider)


def test_a_checkpoint_without_an_average_is_refused(train_state, make, key, tmp_path):
    save(tmp_path, train_state, 1)
    model, state = make(**SMALL)
    without = TrainState(model, state, OPTIMIZER, key=key)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"`ema\..* was .* and is absent"):
            checkpoints.restore(without)


def test_on_a_full_disk_training_goes_on_and_the_last_good_checkpoint_stays(train_state, fresh, monkeypatch, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(train_state, 1), {"number": 1}, score=0.5)
        checkpoints.wait()
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.warns(UserWarning, match=r"step 2 could not be saved \(no space left: .* 1,000 free\)\. .*/1`"):
            checkpoints.save(at(train_state, 2), {"number": 2}, score=0.9)
        assert checkpoints.best == (1, 0.5)
        monkeypatch.undo()
        checkpoints.save(at(train_state, 3), {"number": 3}, score=0.7)
    assert names(tmp_path) == {"1", "3"}
    assert tree_equal(restore(tmp_path, fresh), at(train_state, 3))


# The limit on file size makes writing fail, as on a full disk. It cannot be lifted, so this runs in a new process.
WRITING_FAILS = """
import resource, signal, sys, warnings
import equinox as eqx, jax, levitax, optax
from levitax.train import Checkpoints, TrainState

key, optimizer = jax.random.key(0), optax.adam(1e-3)
model, state = eqx.nn.make_with_state(levitax.LeViT)(
    image_size=8, stages=1, dim=16, heads=1, depth=1, patch_size=4, key=key
)
train_state = TrainState(model, state, optimizer, key=key)
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(train_state, {"number": 0})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoints.save(eqx.tree_at(lambda one: one.step, train_state, train_state.step + 1), {"number": 1})
        checkpoints.wait()
    print([str(warning.message) for warning in caught if "could not be saved" in str(warning.message)])
    print(checkpoints.latest)
"""


@pytest.mark.slow
def test_if_writing_fails_training_goes_on(tmp_path):
    result = subprocess.run([sys.executable, "-c", WRITING_FAILS, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    warned, latest = result.stdout.splitlines()[-2:]
    assert "step 1 could not be saved" in warned and f"`{tmp_path / '0'}`" in warned
    assert latest == str(tmp_path / "0")


def test_a_half_written_checkpoint_is_ignored(train_state, fresh, tmp_path):
    save(tmp_path, train_state, 1)
    # Orbax uses this name while it writes; a killed process leaves it behind.
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    assert tree_equal(restore(tmp_path, fresh), at(train_state, 1))
    assert names(tmp_path) == {"1"}


def test_every_file_of_arrays_and_content_has_a_checksum(train_state, tmp_path):
    save(tmp_path, train_state, 1)
    listed = json.loads((tmp_path / "1" / "levitax_files.json").read_text())
    files = {str(path.relative_to(tmp_path / "1")) for path in (tmp_path / "1").glob("*/**/*") if path.is_file()}
    assert set(listed) == files and any(name.startswith("arrays/") for name in files)


def test_nothing_is_logged(train_state, fresh, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as caught:
        save(tmp_path, train_state, 1)
        restore(tmp_path, fresh)
    assert capfd.readouterr() == ("", "") and not caught
