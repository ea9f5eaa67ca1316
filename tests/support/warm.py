"""One warm process that has imported everything and forks children on command: a worker starts in tens of milliseconds.

``python -m tests.support.warm FD``: FD is a SOCK_SEQPACKET socket. In: one JSON object a packet, with the child's end
of a socket pair attached. Out: ``{"forked": pid}`` for each, and ``{"exit": pid, "status": raw}`` when one is reaped.
It never starts a thread, so that a fork copies nothing half done. What children do stands in ``warm_roles.py``.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from orchestrator.local.family import die_with_parent
from tests.support import warm_roles

PACKET = 1 << 20


class WarmParent:
    def __init__(self, commands: socket.socket) -> None:
        self._commands = commands
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the other end is closed; the children die with us."""
        waiting = selectors.DefaultSelector()
        waiting.register(self._commands, selectors.EVENT_READ)
        waiting.register(self._woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in waiting.select()}
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._commands in ready:
                packet, handed, _, _ = socket.recv_fds(self._commands, PACKET, 1)
                if not packet:
                    return
                self._fork(json.loads(packet), handed[0])

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._say({"exit": pid, "status": status})

    def _fork(self, order: dict[str, Any], wire: int) -> None:
        die_with_us = die_with_parent(signal.SIGKILL)
        pid = os.fork()
        if pid == 0:
            self._become(order, wire, die_with_us)
        os.close(wire)
        self._say({"forked": pid})

    def _become(self, order: dict[str, Any], wire: int, die_with_us: Any) -> None:
        """The child's whole life; does not return."""
        code = 70
        try:
            if die_with_us is not None:
                die_with_us()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for own in (self._woken, self._wake, self._commands.fileno()):
                os.close(own)
            os.setsid()
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = warm_roles.live(order, socket.socket(fileno=wire))
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _say(self, news: dict[str, Any]) -> None:
        self._commands.send(json.dumps(news).encode())


def main() -> None:
    os.chdir(Path(__file__).parents[2])
    warm_roles.load()
    gc.collect()
    gc.freeze()  # what was imported is never looked at again: its pages stay shared
    with socket.socket(fileno=int(sys.argv[1])) as commands:
        commands.send(b'{"ready": true}')
        WarmParent(commands).serve()


if __name__ == "__main__":
    main()
