"""How a command that waits is told to stop."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator.cli.stopping import interruptible


def test_an_interrupt_is_told_wherever_it_comes() -> None:
    """Also where Python swallows exceptions, as in a finaliser."""

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with interruptible() as told:
        Dying()
        assert told.wait(5)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "the second one ends the process"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
