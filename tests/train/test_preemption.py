import os
import signal

from levitax.train import Preemption


def test_a_signal_is_a_question_until_the_end():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2) and preemption.reached(3)
    assert signal.getsignal(signal.SIGTERM) == before
    with Preemption() as preemption:
        assert not preemption.reached(1)
