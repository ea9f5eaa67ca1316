"""The whole house on one machine: PostgreSQL, Redis, migrate, API, scheduler and workers as child processes.

``with Stack() as stack:`` returns when every part answers, and leaves nothing behind: parts are stopped in reverse
order, and Linux ends them should this process be killed. A part that ends by itself is named by ``wait``.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from orchestrator.clock import Clock
from orchestrator.domain.errors import ConfigError, Unavailable
from orchestrator.local.family import die_with_parent
from orchestrator.local.postgres import PostgresServer
from orchestrator.local.process import check_free, free_port
from orchestrator.local.servers import RedisServer

#: How long a role may take to answer, in seconds.
START_SECONDS = 60.0
DATABASE = "orchestrator"
POLL_SECONDS = 0.05

Say = Callable[[str], None]


class Role:
    """One command of ours as a child process; its talk goes to ``log``."""

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as file:
            self._process = _spawn(words, environment, file, file)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code, once it has one."""
        return self._process.poll()

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL when it takes longer than ``seconds``."""
        if self.ended is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        if self.ended is None:
            self._process.kill()
        self._process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


class Stack:
    """``directory`` keeps data and logs between two lives; without it a temporary one is made and removed."""

    def __init__(
        self,
        *,
        workers: int = 2,
        directory: Path | None = None,
        port: int | None = None,
        stop_seconds: float = 30.0,
        say: Say = lambda _: None,
    ) -> None:
        """``port``: the API's, a free one by default. ``stop_seconds``: how long a role may take to stop."""
        self._stop_seconds = stop_seconds
        self._workers = workers
        self._given = directory
        self._port = port
        self._say = say
        self._clock = Clock()
        self._exit = ExitStack()
        self.directory: Path
        self.postgres: PostgresServer
        self.redis: RedisServer
        self.roles: dict[str, Role] = {}
        self.url = ""
        self.api_key = ""
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self.directory = self._take_directory(starting)
            port = self._take_port()
            self._say("starting PostgreSQL and Redis")
            kept = self._given is not None
            self.postgres = starting.enter_context(
                PostgresServer(directory=self.directory / "postgres" if kept else None, clock=self._clock)
            )
            self.redis = starting.enter_context(RedisServer(clock=self._clock))
            self.environment = self._environment(port)
            self._say("migrating the database")
            self._command("migrate")
            self.api_key = self._command("keys", "create", "--role", "admin", "--name", "up-local", "--json")["key"]
            self.url = f"http://127.0.0.1:{port}"
            self._say(f"starting api, scheduler and {self._workers} workers")
            starting.callback(self._stop_roles)
            self._start_roles()
            self._exit = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def wait(self, stop: threading.Event) -> Role | None:
        """Until ``stop`` is set (None), or a part ends by itself (that part)."""
        while not stop.wait(0.5):
            for role in self.roles.values():
                if role.ended is not None:
                    return role
        return None

    def _take_directory(self, starting: ExitStack) -> Path:
        if self._given is None:
            return Path(starting.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-up-local-")))
        try:
            self._given.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._given} cannot be made: {error.strerror}.", mend="Give another --dir.") from None
        return self._given.resolve()

    def _take_port(self) -> int:
        if self._port is None:
            return free_port(self._clock)
        try:
            check_free(self._port)
        except OSError:
            raise ConfigError(
                f"the address 127.0.0.1:{self._port} is in use.", mend="Give another --port, or stop what holds it."
            ) from None
        return self._port

    def _environment(self, port: int) -> dict[str, str]:
        """The roles' settings: the caller's own, with ours for where things are."""
        database = self.postgres.database_url(DATABASE)
        if not (self.directory / "created").exists():
            self.postgres.create_database(name=DATABASE)
            (self.directory / "created").touch()
        mine = {
            "ORCHESTRATOR_DATABASE_URL": database,
            "ORCHESTRATOR_BROKER_URL": self.redis.url,
            "ORCHESTRATOR_HOST": "127.0.0.1",
            "ORCHESTRATOR_PORT": str(port),
        }
        kept = {name: value for name, value in os.environ.items() if name != "ORCHESTRATOR_URL"}
        return {**kept, **mine}

    def _command(self, *words: str) -> Any:
        """Runs one of our commands to its end; what it printed as JSON. Raises ``Unavailable`` with what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"orchestrator {words[0]} failed with exit {done.returncode}:\n{done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _start_roles(self) -> None:
        ports = {"api": int(self.environment["ORCHESTRATOR_PORT"])}
        names = ["scheduler", *(f"worker-{number + 1}" for number in range(self._workers))]
        ports |= {name: free_port(self._clock) for name in names}
        for name, port in ports.items():
            words = [name.partition("-")[0]]
            own = {} if name == "api" else {"ORCHESTRATOR_METRICS_PORT": str(port)}
            self.roles[name] = Role(name, words, {**self.environment, **own}, self.directory / f"{name}.log")
        for name, port in ports.items():
            self._await_health(self.roles[name], port, "/readyz" if name == "api" else "/livez")

    def _await_health(self, role: Role, port: int, path: str) -> None:
        until = self._clock.monotonic() + START_SECONDS
        while not _answers(port, path):
            if role.ended is not None or self._clock.monotonic() > until:
                why = "ended" if role.ended is not None else f"did not answer in {START_SECONDS:g} s"
                raise Unavailable(
                    f"{role.name} {why}. Its log ends:\n{role.tail()}", mend="Mend that, then start again."
                )
            self._clock.sleep(POLL_SECONDS)

    def _stop_roles(self) -> None:
        """Workers first, so that they can still write what they finish."""
        for name in reversed(self.roles):
            self._say(f"stopping {name}")
            self.roles[name].stop(self._stop_seconds)
        self.roles.clear()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _spawn(
    words: Sequence[str], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,  # Ctrl-C is ours to hand on, in order
        preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  nothing else survives SIGKILL of this process
    )
