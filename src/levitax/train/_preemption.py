import signal
import threading
import warnings

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Catches SIGTERM, which clusters send before they stop a process, so that a training loop can save a checkpoint
    and end: `with Preemption() as preemption: ... if preemption.reached(step): ...`.

    With several processes, JAX passes a signal on to all of them, and they agree on the step. With one process, enter
    `Preemption` in the main thread, the only thread in which Python handles signals. In another thread it warns, and
    `reached` is always false.
    """

    def __init__(self):
        self._signalled = False
        self._before = None

    def __enter__(self) -> "Preemption":
        # With several processes, JAX handles the signal.
        if jax.process_count() > 1:
            return self
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        else:
            warnings.warn(
                "`Preemption` was entered outside the main thread, where Python handles no signals: SIGTERM will end "
                "the process without a checkpoint. Enter it in the main thread.",
                stacklevel=2,
            )
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to stop after this `step`. All processes must pass the same number."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled

    def _note(self, *_):
        self._signalled = True
