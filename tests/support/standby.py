"""A synchronous standby of a PostgreSQL of our own: what the primary acknowledges, it has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.local.process import POLL_SECONDS
from tests.support.servers import PostgresServer


class Standby(PostgresServer):
    """Copied from ``primary``, which must run; streams from it until ``promote``."""

    title = "PostgreSQL-standby"

    def __init__(self, primary: PostgresServer, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self._primary = primary

    def _prepare(self) -> None:
        if (self.directory / "data").exists():
            return
        shutil.copy(self._primary.directory / "password", self.directory / "password")
        if self.account is not None:
            for path in (self.directory, self.directory / "password"):
                os.chown(path, self.account.uid, self.account.gid)
            self._make_reachable()
        where: list[str | Path] = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", self.user]
        how: list[str | Path] = [
            "-D",
            self.directory / "data",
            "-X",
            "stream",
            "-c",
            "fast",
            "--write-recovery-conf",
            "--no-sync",
        ]
        tool = self._binaries / "pg_basebackup"
        self.run_tool([tool, *where, *how], environment={"PGPASSWORD": self._password()})

    def follow(self) -> None:
        """From here on no commit of the primary is acknowledged before it is on this disk as well."""
        primary = self._primary
        primary._sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary._sql("SELECT pg_reload_conf()")
        until = self._clock.monotonic() + self.start_seconds
        while True:
            try:  # a division by zero as long as none is synchronous
                primary._sql("SELECT 1 / count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
                return
            except Unavailable:
                if self._clock.monotonic() > until:
                    raise
                self._clock.sleep(POLL_SECONDS)

    def promote(self) -> None:
        """Makes it the primary; returns when it takes writes."""
        self._sql("SELECT pg_promote(true, 30)")
