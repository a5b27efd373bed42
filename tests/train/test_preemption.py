import os
import signal
import threading

import pytest

from levitax.train import Preemption


def test_a_signal_is_recorded_until_the_context_ends():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2) and preemption.reached(3)
    assert signal.getsignal(signal.SIGTERM) == before
    with Preemption() as preemption:
        assert not preemption.reached(1)


def test_outside_the_main_thread_it_warns():
    def enter():
        with pytest.warns(UserWarning, match="outside the main thread.*SIGTERM will end the process"), Preemption():
            entered.set()

    entered = threading.Event()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered.is_set()
