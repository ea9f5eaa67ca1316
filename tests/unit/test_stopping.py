"""How a command that waits is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from orchestrator.cli.stopping import interruptible


@pytest.fixture
def usual() -> Iterator[None]:
    """A process that a shell started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual")
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
