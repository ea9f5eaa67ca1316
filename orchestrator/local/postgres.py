"""A PostgreSQL of our own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from orchestrator.clock import Clock
from orchestrator.local.find import find_postgres
from orchestrator.local.process import ANSWER_SECONDS, ChildServer, unprivileged_account


class PostgresServer(ChildServer):
    """Durable as shipped (fsync and synchronous_commit on), 200 connections, password login over TCP only."""

    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": open sessions are ended
    death_signal = signal.SIGINT
    user: ClassVar[str] = "orchestrator"
    settings: ClassVar[dict[str, str]] = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": "200",
        "timezone": "UTC",
        # Shared memory that lives in the data directory goes away with it, even after SIGKILL.
        "dynamic_shared_memory_type": "mmap",
    }

    def __init__(
        self,
        *,
        directory: Path | None = None,
        port: int | None = None,
        clock: Clock | None = None,
        prefer_bundled: bool = False,
        settings: dict[str, str] | None = None,
    ) -> None:
        super().__init__(directory=directory, port=port, clock=clock)
        self._binaries = find_postgres(prefer_bundled=prefer_bundled)
        self._settings = {**self.settings, **(settings or {})}
        self.account = unprivileged_account("postgres")  # PostgreSQL refuses to run as root

    @property
    def url(self) -> str:
        """The maintenance database; work in one from ``create_database``."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        return f"postgresql+psycopg://{self.user}:{self._password()}@127.0.0.1:{self.port}/{name}"

    def create_database(self, *, template: str | None = None, name: str | None = None) -> str:
        """The URL of a fresh database: empty, or a clone of ``template`` (a name from ``create_template``)."""
        name = name or f"orchestrator_{self._clock.new_id()}"
        self._sql(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template0"}"')
        return self.database_url(name)

    def create_template(self, name: str, fill: Callable[[str], None]) -> str:
        """Makes a database to clone, filled by ``fill(url)``, which must close its connections; returns ``name``."""
        fill(self.create_database(name=name))
        return name

    def drop_database(self, url: str) -> None:
        """Drops it and ends its sessions."""
        self._sql(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def _sql(self, statement: str) -> None:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", "postgres"]
        quiet = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]
        self.run_tool([self._binaries / "psql", *where, *quiet], environment={"PGPASSWORD": self._password()})

    def _password(self) -> str:
        file = self.directory / "password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(self._clock.new_secret())
        return file.read_text()

    def _prepare(self) -> None:
        self._password()
        if self.account is not None:
            for path in (self.directory, self.directory / "password"):
                os.chown(path, self.account.uid, self.account.gid)
            self._make_reachable()
        if not (self.directory / "data" / "PG_VERSION").exists():
            login = ["-U", self.user, "--auth=scram-sha-256", f"--pwfile={self.directory / 'password'}"]
            text = ["--encoding=UTF8", "--locale=C", "--no-sync"]
            self.run_tool([self._binaries / "initdb", "-D", self.directory / "data", *login, *text])

    def _make_reachable(self) -> None:
        """Copies the programs beside the data when the server's user may not enter where they are, as in a home."""
        try:
            self.run_tool([self._binaries / "postgres", "--version"])
        except PermissionError:
            shutil.copytree(self._binaries.parent, self.directory / "programs", symlinks=True, dirs_exist_ok=True)
            self._binaries = self.directory / "programs" / self._binaries.name

    def _command(self) -> Sequence[str | Path]:
        chosen = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        return [self._binaries / "postgres", "-D", self.directory / "data", "-p", str(self.port), *chosen]

    def _answers(self) -> bool:
        """A login request is met by an authentication request; a server that still recovers answers with an error."""
        body = struct.pack("!i", 196608) + b"user\0" + self.user.encode() + b"\0database\0postgres\0\0"
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS) as connection:
            connection.sendall(struct.pack("!i", len(body) + 4) + body)
            return connection.recv(1) == b"R"
