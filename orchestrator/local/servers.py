"""PostgreSQL, Redis, RabbitMQ and Prometheus as private child processes; what all promise stands in ``process.py``."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Sequence
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.local.find import find_prometheus, find_redis
from orchestrator.local.postgres import PostgresServer
from orchestrator.local.process import ANSWER_SECONDS, ChildServer
from orchestrator.local.rabbitmq import RabbitServer

__all__ = ["ChildServer", "PostgresServer", "PrometheusServer", "RabbitServer", "RedisServer"]


class RedisServer(ChildServer):
    """Keeps nothing on disk and evicts nothing: a broker that can be lost, but does not lose quietly."""

    title = "Redis"

    def __init__(
        self,
        *,
        directory: Path | None = None,
        port: int | None = None,
        clock: Clock | None = None,
        prefer_bundled: bool = False,
    ) -> None:
        super().__init__(directory=directory, port=port, clock=clock)
        self._binary = find_redis(prefer_bundled=prefer_bundled)

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        """One of the 16 databases, 0 to 15. FLUSHALL crosses them, FLUSHDB does not."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def _prepare(self) -> None:
        """It needs no files."""

    def _command(self) -> Sequence[str | Path]:
        memory = ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        return [self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.directory, *memory]

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"


class PrometheusServer(ChildServer):
    """Scrapes what ``configuration`` (the text of a prometheus.yml) names; by default nothing."""

    title = "Prometheus"

    def __init__(
        self,
        *,
        configuration: str = "scrape_configs: []\n",
        directory: Path | None = None,
        port: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(directory=directory, port=port, clock=clock)
        self._configuration = configuration
        self._binary = find_prometheus()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        (self.directory / "prometheus.yml").write_text(self._configuration)

    def _command(self) -> Sequence[str | Path]:
        return [
            self._binary,
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
