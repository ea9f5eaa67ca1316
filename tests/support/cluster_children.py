"""The test's side of the warm parent: children with their events, their death, and how it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from orchestrator.clock import Clock
from orchestrator.local.family import die_with_parent
from tests.support.warm import PACKET

#: How long anything may take that a test waits for by default, in seconds. Slow machines are not broken ones.
PATIENCE = 30.0


class Child:
    """A forked process. Its events are JSON objects with a name in ``event``."""

    def __init__(self, order: Mapping[str, Any], wire: socket.socket) -> None:
        self.role: str = order["role"]
        self.incarnation: str = order["arguments"].get("incarnation", "")
        self.log = Path(order["log"])
        self.pid = 0
        self.events: list[dict[str, Any]] = []
        #: Wall clock at which it was seen dead, and its raw wait status.
        self.died_at: float | None = None
        self.status: int | None = None
        self.stopping = False
        #: What it was started with, and the child whose place it took.
        self.environment: dict[str, str] = {}
        self.follows: Child | None = None
        self._heard_all = False
        self._wire = wire
        self._changed = threading.Condition()
        self._clock = Clock()

    # what it said

    def hear(self) -> None:
        """The reader thread's body: until the child is gone."""
        with self._wire, suppress(OSError), self._wire.makefile("rb") as lines:
            for line in lines:
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._heard_all = True
            self._changed.notify_all()

    def wait_event(self, *names: str, seconds: float = PATIENCE, after: int = 0, **matching: Any) -> dict[str, Any]:
        """The first event of one of ``names`` with those fields, from position ``after`` on."""

        def found() -> dict[str, Any] | None:
            for event in self.events[after:]:
                if event["event"] in names and all(event.get(key) == value for key, value in matching.items()):
                    return event
            return None

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._heard_all, seconds)
            event = found()
        if event is None:
            raise AssertionError(f"{self} did not say {names} {matching or ''} within {seconds:g} s.\n{self.tail()}")
        return event

    def count(self, name: str) -> int:
        with self._changed:
            return sum(event["event"] == name for event in self.events)

    def arm(self, text: str) -> None:
        """Arms crash points in the living child; returns when they are armed."""
        mark = len(self.events)
        self._wire.sendall(json.dumps({"arm": text}).encode() + b"\n")
        self.wait_event("armed", after=mark)

    # how it ends

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end of the block."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def bury(self, status: int) -> None:
        with self._changed:
            self.died_at, self.status = self._clock.now(), status
            self._changed.notify_all()

    def wait_exit(self, seconds: float = PATIENCE) -> int:
        """Its exit code, as the shell counts: 137 for SIGKILL."""
        with self._changed:
            self._changed.wait_for(lambda: self.status is not None, seconds)
        if self.status is None:
            raise AssertionError(f"{self} did not end within {seconds:g} s.\n{self.tail()}")
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else 128 + os.WTERMSIG(self.status)

    @property
    def alive(self) -> bool:
        return self.status is None

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def __repr__(self) -> str:
        return f"<{self.role} {self.pid} {self.incarnation}>"


class Warm:
    """``with Warm() as warm: child = warm.fork(…)``. All children die with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered = threading.Condition()
        self._pids: list[int] = []
        self._children: dict[int, Child] = {}
        self._early: dict[int, int] = {}
        self._on_exit: dict[int, Callable[[Child], None]] = {}

    def __enter__(self) -> Self:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._commands = mine
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - pytest's main thread starts it
            )
        mine.settimeout(60)
        if not mine.recv(PACKET):
            raise RuntimeError("the warm parent did not start: see above")
        mine.settimeout(None)
        self._hearing = threading.Thread(target=self._hear, name="test-warm", daemon=True)
        self._hearing.start()
        return self

    def __exit__(self, *_: object) -> None:
        for child in list(self._children.values()):
            if child.alive:
                child.signal(signal.SIGKILL)
        self._commands.shutdown(socket.SHUT_RDWR)
        self._hearing.join(PATIENCE)
        self._commands.close()
        self._process.wait(10)

    def fork(
        self,
        role: str,
        log: Path,
        environment: Mapping[str, str],
        arguments: Mapping[str, Any],
        arm: str = "",
        on_exit: Callable[[Child], None] | None = None,
    ) -> Child:
        """Starts a child; ``on_exit`` is called on the reader thread when it has been reaped."""
        order = {
            "role": role,
            "log": str(log),
            "environment": dict(environment),
            "arguments": dict(arguments),
            "arm": arm,
        }
        mine, theirs = socket.socketpair()
        child = Child(order, mine)
        with self._lock, theirs:
            socket.send_fds(self._commands, [json.dumps(order).encode()], [theirs.fileno()])
            with self._answered:
                assert self._answered.wait_for(lambda: bool(self._pids), PATIENCE), "the warm parent does not answer"
                child.pid = self._pids.pop(0)
                self._children[child.pid] = child
                if on_exit is not None:
                    self._on_exit[child.pid] = on_exit
                early = self._early.pop(child.pid, None)
        threading.Thread(target=child.hear, name=f"test-child-{child.pid}", daemon=True).start()
        if early is not None:
            self._gone(child.pid, early)
        return child

    def _hear(self) -> None:
        while packet := self._commands.recv(PACKET):
            news = json.loads(packet)
            if "forked" in news:
                with self._answered:
                    self._pids.append(news["forked"])
                    self._answered.notify_all()
                continue
            with self._answered:
                known = news["exit"] in self._children
                if not known:
                    self._early[news["exit"]] = news["status"]
            if known:
                self._gone(news["exit"], news["status"])

    def _gone(self, pid: int, status: int) -> None:
        child = self._children.pop(pid)
        on_exit = self._on_exit.pop(pid, None)
        child.bury(status)
        if on_exit is not None:
            on_exit(child)
