"""One child process that listens on loopback, and dies when we die.

Promises, for every server built on ``ChildServer``:

- It listens on 127.0.0.1 only, on a port of its own, with its files in a directory of its own; ``stop`` removes both.
- ``start`` returns when a client has really been answered, or raises ``Unavailable`` with the end of the server's log.
- It does not outlive this process: Linux's parent-death signal covers SIGKILL (temporary files stay then), ``atexit``
  the rest. That signal is sent when the *thread* that called ``start`` ends: start from one that lives long enough.
- Only processes started here, and their descendants, are ever signalled.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.local.family import descendants, die_with_parent, is_alive

POLL_SECONDS = 0.02
#: How long one try of a readiness check may take.
ANSWER_SECONDS = 2.0
#: Below the kernel's range for outgoing connections (32768 upwards): there a client that connects while the server is
#: down can be given the very port it connects to, talk to itself, and keep the server from coming back.
_PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system user a server runs as."""

    name: str
    uid: int
    gid: int


def unprivileged_account(*preferred: str) -> Account | None:
    """None unless we are root; then the first of ``preferred`` that exists, else ``nobody``."""
    if os.geteuid() != 0:
        return None
    for name in (*preferred, "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise Unavailable("No unprivileged user to run a server as.", mend="Run as a user other than root.")


def check_free(port: int) -> None:
    """Raises OSError when somebody listens on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def free_port(clock: Clock) -> int:
    """A loopback TCP port nobody listens on. Another may take it before you do: ``ChildServer.start`` tries again."""
    for _ in range(200):
        port = _PORTS[int(clock.uniform() * len(_PORTS))]
        with suppress(OSError):
            check_free(port)
            return port
    raise Unavailable("No free TCP port on 127.0.0.1 from 20000 to 32000.", mend="Stop what holds them (see: ss -ltn).")


class ChildServer(ABC):
    """A server process of our own. Use ``with Server() as server:`` or ``start`` and ``stop``."""

    #: What people call it, in messages.
    title: ClassVar[str]
    #: Asks for a clean, quick end.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    #: Sent by the kernel when our process dies.
    death_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_seconds: ClassVar[float] = 60.0
    stop_seconds: ClassVar[float] = 20.0

    def __init__(self, *, directory: Path | None = None, port: int | None = None, clock: Clock | None = None) -> None:
        """``directory`` keeps the data beyond ``stop``; without it a temporary one is made and removed."""
        self._clock = clock or Clock()
        self._fixed_port = port
        self._keeps_data = directory is not None
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or 0
        self.account: Account | None = None

    # What a kind of server says about itself

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def _prepare(self) -> None:
        """Writes configuration and data files; must do no harm when they are there already."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]: ...

    def _environment(self) -> dict[str, str]:
        """Nothing of ours but the path: a PGHOST or RABBITMQ_NODENAME of the caller must not leak in."""
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory), "LC_ALL": "C"}

    @abstractmethod
    def _answers(self) -> bool:
        """Connects as a client; True when the server is ready to work. An OSError counts as not yet."""

    # What is the same for all

    @property
    def directory(self) -> Path:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"orchestrator-{self.title.lower()}-"))
        return self._directory

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self, characters: int = 2000) -> str:
        log = self.directory / "server.log"
        return log.read_text(errors="replace")[-characters:].strip() if log.exists() else ""

    def start(self) -> Self:
        """Starts and waits until it answers; does nothing when it runs. Raises ``Unavailable``."""
        if self.running:
            return self
        atexit.register(self.stop)
        for _ in range(3):
            probed = self.port == 0
            self._take_port()
            self.directory.mkdir(parents=True, exist_ok=True)
            self._prepare()
            self._spawn()
            if self._became_ready():
                return self
            self._end(signal.SIGKILL)
            if not (probed and "in use" in self.log_tail().lower()):
                break
            self.port = 0  # somebody took it between the probe and the bind
        where = f"{self.title} did not start on 127.0.0.1:{self.port}."
        raise Unavailable(
            f"{where} Its log ends:\n{self.log_tail() or '(empty)'}\n", mend="Mend that, then start again."
        )

    def stop(self) -> None:
        """Ends it, gently and then not, and removes what it kept in a temporary directory. Safe to repeat."""
        atexit.unregister(self.stop)
        self._end(self.stop_signal)
        self.port = self._fixed_port or 0
        if self._directory is not None and not self._keeps_data:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """SIGKILL to it and all its descendants, as a crash would: its files stay. Returns when all are gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Starts it again on the same port with the same files, after ``kill`` or while it runs."""
        self._end(self.stop_signal)
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered, until ``resume``."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run_tool(self, command: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> str:
        """Runs a tool that comes with the server, as the server's user; its output, or ``Unavailable`` with it."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**self._environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            text=True,
            capture_output=True,
            check=False,
            timeout=self.start_seconds,
            cwd=self.directory,
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise Unavailable(f"{Path(command[0]).name} failed with exit {done.returncode}: {said}")
        return done.stdout

    def _take_port(self) -> None:
        """Somebody else's server on our port would answer in the place of ours, so look first."""
        self.port = self.port or free_port(self._clock)
        try:
            check_free(self.port)
        except OSError as error:
            where = f"{self.title} cannot listen on 127.0.0.1:{self.port}: {error.strerror or error}."
            raise Unavailable(where, mend=f"Stop what does (see: ss -ltnp 'sport = :{self.port}').") from None

    def _spawn(self) -> None:
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in self._command()],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C in a terminal is ours to handle, not the server's
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
                preexec_fn=die_with_parent(self.death_signal),
            )

    def _became_ready(self) -> bool:
        deadline = self._clock.monotonic() + self.start_seconds
        while self.running and self._clock.monotonic() < deadline:
            with suppress(OSError):
                if self._answers():
                    return True
            self._clock.sleep(POLL_SECONDS)
        return False

    def _signal_all(self, number: signal.Signals) -> list[int]:
        if not self.running or self._process is None:
            return []
        os.kill(self._process.pid, signal.SIGSTOP)  # so that it forks no more while we list its children
        below = descendants(self._process.pid)
        for pid in (*below, self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return below

    def _end(self, number: signal.Signals) -> None:
        """``number`` to the server; SIGKILL to the whole family when that is ``number`` or it does not end in time."""
        process = self._process
        if process is None:
            return
        family: list[int] = descendants(process.pid) if self.running else []
        if self.running and number is not signal.SIGKILL:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a paused process could not hear it
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.stop_seconds)
        family += self._signal_all(signal.SIGKILL)
        process.wait()
        self._bury(family, self._clock.monotonic() + self.stop_seconds)
        self._process = None

    def _bury(self, family: list[int], deadline: float) -> None:
        """Waits for the descendants; those that outstay their parent by 2 s are killed."""
        hard = deadline - self.stop_seconds + 2.0
        while any(is_alive(pid) for pid in family) and self._clock.monotonic() < deadline:
            if self._clock.monotonic() > hard:
                for pid in filter(is_alive, family):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self._clock.sleep(POLL_SECONDS)
