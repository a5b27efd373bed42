import signal
import threading
import warnings

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Turns SIGTERM, with which clusters announce that they will stop a process, into a question that a training loop
    asks after each step: `with Preemption() as preemption: ... if preemption.reached(step): save and leave`.

    In several processes, all of which JAX tells of a signal to one, they agree on the step. In one process, enter it in
    the main thread: Python takes signals in no other, so elsewhere it warns, and is never reached.
    """

    def __init__(self):
        self._signalled = False
        self._before = None

    def __enter__(self) -> "Preemption":
        # In several processes JAX listens itself.
        if jax.process_count() > 1:
            return self
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        else:
            warnings.warn(
                "`Preemption` was entered outside of the main thread, where Python takes no signals: SIGTERM will end "
                "the process without a checkpoint. Enter it in the main thread.",
                stacklevel=2,
            )
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to leave after this `step`, a number that all processes must pass."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled

    def _note(self, *_):
        self._signalled = True
