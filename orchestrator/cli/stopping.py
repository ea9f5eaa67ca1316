"""Roles run until they are told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def stop_signal() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends the process where it is. Main thread only."""
    stop = threading.Event()

    def told(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told)
    return stop


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Set by the first SIGINT within the block; a second one ends the process where it is. Main thread only.

    For a command that waits: an exception out of a signal may be raised where Python swallows it, in a finaliser.
    """
    told = threading.Event()

    def tell(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        told.set()

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, before)


def address(host: str, port: int) -> str:
    """The URL of what listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
