"""The private servers of a run, and what every column needs of them."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from bench.bell import Bell
from bench.children import Child, cpu_seconds
from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.local.family import descendants
from orchestrator.local.servers import PostgresServer, RedisServer

#: Redis databases: one for our broker, two for Celery's broker and results, and from the last on for further fleets.
OUR_BROKER, STOCK_BROKER, STOCK_RESULTS, OTHER_BROKERS = 0, 1, 2, 3


class Lab:
    """``with Lab() as lab``: PostgreSQL (fsync and synchronous_commit on), Redis and the bell; all gone afterwards."""

    def __init__(self, logs: Path | None = None) -> None:
        self.clock = Clock()
        self._logs = logs
        self._exit = ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self.directory = self._directory(starting)
            self.postgres = starting.enter_context(PostgresServer(clock=self.clock))
            self.redis = starting.enter_context(RedisServer(clock=self.clock))
            self.bell = starting.enter_context(Bell())
            self._exit = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _directory(self, starting: ExitStack) -> Path:
        if self._logs is None:
            return Path(starting.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-bench-")))
        self._logs.mkdir(parents=True, exist_ok=True)
        return self._logs.resolve()

    def child(
        self,
        name: str,
        *words: str,
        environment: Mapping[str, str] | None = None,
        talks: bool = False,
        under: Sequence[str] = (),
    ) -> Child:
        """``python -m words`` with the bell's address; its log is numbered in the order of starting."""
        self._count += 1
        log = self.directory / f"{self._count:03}-{name}.log"
        return Child(name, words, {**self.bell.environment, **(environment or {})}, log, talks=talks, under=under)

    def await_true(self, what: str, check: Callable[[], bool], children: list[Child], seconds: float = 60.0) -> None:
        """Looks every 20 ms for ``check()``. Raises ``Unavailable``, with a log's end, if a child dies or time ends."""
        until = self.clock.monotonic() + seconds
        while not check():
            dead = next((child for child in children if not child.alive), None)
            if dead is not None:
                raise Unavailable(f"{dead.name} ended by itself. Its log ends:\n{dead.tail()}", mend="Mend that first.")
            if self.clock.monotonic() > until:
                tail = children[-1].tail() if children else ""
                raise Unavailable(f"{what} took more than {seconds:g} s. {tail}", mend="See --logs DIR.")
            self.clock.sleep(0.02)

    def flush_redis(self) -> None:
        """FLUSHALL: every database, as an operator's mistake or a restart without persistence."""
        with socket.create_connection(("127.0.0.1", self.redis.port), 5) as wire:
            wire.sendall(b"FLUSHALL\r\n")
            assert wire.recv(16) == b"+OK\r\n"

    def servers_cpu(self) -> dict[str, float]:
        """Processor seconds so far of PostgreSQL with its backends, and of Redis."""
        postgres, redis = self.postgres.pid or 0, self.redis.pid or 0
        return {
            "postgres": cpu_seconds([postgres, *descendants(postgres)]),
            "redis": cpu_seconds([redis]),
        }
