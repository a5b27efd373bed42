import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from filelock import FileLock

import levitax


# With telemetry, importing openvino or nncf forks a process after JAX has started its threads.
sys.modules["openvino_telemetry"] = cast(Any, None)

# Before jax 0.11, fusion emitters take half of the compile time without optimisations. `XLA_FLAGS="" pytest` compiles
# as newer versions do, which have no such flag.
if jax.__version_info__ < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Compiling takes a third of the time. Comparisons with the references compile with all optimisations, as for a user.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Sizes of a small model: two stages with one block each."""
    return {
        "image_size": 16,
        "num_classes": 5,
        "stages": 2,
        "dim": (16, 24),
        "depth": 1,
        "heads": (1, 2),
        "patch_size": 4,
        "key_dim": 8,
    }


@pytest.fixture(scope="session")
def make(small: dict[str, Any], key: jax.Array) -> Callable[..., Any]:
    """Makes a small model and its state; keywords override the sizes. Equal models are initialised once."""
    made = {}

    def make(**overrides):
        name = repr(sorted(overrides.items()))
        if name not in made:
            made[name] = eqx.nn.make_with_state(levitax.LeViT)(**small | overrides, key=key)
        model, state = made[name]
        # A copy: `state.set` makes the old state unusable.
        return model, jax.tree.map(lambda leaf: leaf, state)

    return make


@pytest.fixture
def randomise() -> Callable[..., Any]:
    """Gives normalisations and attention biases random values, as training would. In a fresh model, residual branches
    are zero and hide errors."""
    rng = np.random.default_rng(0)

    def randomise(model, state):
        state = jax.tree.map(lambda leaf: leaf, state)  # A copy: `set` makes the old state unusable.

        def draw(low, high, like):
            return jnp.asarray(rng.uniform(low, high, like.shape), jnp.float32)

        def put(node):
            nonlocal state
            if isinstance(node, levitax.nn.BatchNorm):
                statistics = draw(-0.5, 0.5, node.weight), draw(0.5, 1.5, node.weight)
                state = state.set(node.statistics, levitax.nn.RunningStatistics(*statistics))
                new = draw(0.5, 1.5, node.weight), draw(-0.5, 0.5, node.weight)
                return eqx.tree_at(lambda norm: (norm.weight, norm.bias), node, new)
            if isinstance(node, levitax.nn.AttentionBias):
                return eqx.tree_at(lambda bias: bias.table, node, draw(-1, 1, node.table))
            return node

        changed = levitax.nn.BatchNorm, levitax.nn.AttentionBias
        model = jax.tree.map(put, model, is_leaf=lambda node: isinstance(node, changed))
        return model, state

    return randomise


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Returns a folder by name, filled by a function once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session", autouse=True)
def compilations(once) -> Path:
    """Shares a compilation cache between the processes of the tests, which compile the same small models. The default
    tests take an eighth less time."""
    folder = once("compiled", lambda folder: None)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


@pytest.fixture(scope="session")
def scripts_share_compilations(compilations) -> Iterator[None]:
    """Scripts use the same cache and compile as the tests do, because short runs spend most of their time compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(compilations))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="session")
def trained(once, scripts_share_compilations) -> tuple[Path, str]:
    """The folder of `examples/train.py` after 8 of its 26 epochs, which is read-only, and the output of the run."""
    examples = Path(__file__).parents[1] / "examples"
    shorter = f"import sys; sys.path.insert(0, {str(examples)!r}); import train; train.EPOCHS = 8; train.main()"

    def train(folder: Path) -> None:
        # Long enough to be worth all optimisations.
        environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
        command = [sys.executable, "-c", shorter]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (folder / "printed.txt").write_text(result.stdout)

    folder = once("digits", train)
    return folder / "runs" / "digits", (folder / "printed.txt").read_text()


@pytest.fixture
def images() -> Callable[..., jax.Array]:
    """Draws a batch of images."""

    def images(*shape, seed=1):
        return jax.random.normal(jax.random.key(seed), shape, jnp.float32)

    return images


@pytest.fixture
def error() -> Callable[[Any, Any], float]:
    """Returns the largest error over the largest magnitude, of the worst pair of leaves."""

    def error(ours, theirs):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        pairs = [(np.asarray(one, np.float64), np.asarray(other, np.float64)) for one, other in _pairs(ours, theirs)]
        assert pairs and all(one.shape == other.shape for one, other in pairs)
        # Not Python's `max`, which ignores NaN.
        return float(np.max([np.abs(one - other).max() / np.abs(other).max() for one, other in pairs]))

    def _pairs(ours, theirs):
        return zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)

    return error


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switches off jaxtyping's run-time checks, so that a test gets the messages that a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
