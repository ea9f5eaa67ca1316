"""Roles run until they are told to stop."""

from __future__ import annotations

import signal
import threading
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


def address(host: str, port: int) -> str:
    """The URL of what listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
