"""Proof of life and of death: a lock that the operating system or the database frees when its process is gone.

PostgreSQL: a session advisory lock on a connection of its own. SQLite: a lock on a file beside the database. A free
lock alone proves nothing (a connection may break while its process lives): the heartbeat must be old as well.
"""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from orchestrator.domain.ids import Incarnation
from orchestrator.store.database import Database
from orchestrator.store.workers import lock_number

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("orchestrator.life")


class LifeLock:
    """Held from ``hold`` until ``drop`` or the end of the process."""

    def __init__(self, db: Database, who: Incarnation) -> None:
        self._db = db
        self._who = who
        self._connection: psycopg.Connection[Any] | None = None
        self._file: IO[bytes] | None = None

    def hold(self) -> None:
        """Takes the lock, or again after its connection broke or reached a standby; quick when it is held."""
        if self._db.dialect.name == "postgresql":
            self._hold_postgres()
        elif self._file is None:
            path = _file(self._db, self._who)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _hold_postgres(self) -> None:
        import psycopg  # SQLite needs no driver of PostgreSQL's

        if self._connection is not None:
            try:
                standby = self._connection.execute("SELECT pg_is_in_recovery()").fetchone()
                if standby == (False,):
                    return
            except psycopg.Error:
                pass
            self._connection.close()
            self._connection = None
        url = self._db.url.set(drivername="postgresql").render_as_string(hide_password=False)
        try:
            connection = psycopg.connect(url, autocommit=True, connect_timeout=5, application_name="orchestrator-life")
            connection.execute("SELECT pg_try_advisory_lock(%s)", [lock_number(self._who)])
        except psycopg.Error as error:
            log.warning("life.lock_failed", extra={"error": str(error)})
            return
        self._connection = connection

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._file is not None:
            self._file.close()
            self._file = None
            _file(self._db, self._who).unlink(missing_ok=True)


def is_dead(db: Database, who: str) -> bool:
    """SQLite: whether the process's file lock is free. On PostgreSQL always False: ask the advisory lock."""
    if db.dialect.name != "sqlite":
        return False
    path = _file(db, who)
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        path.unlink(missing_ok=True)
        return True


def _file(db: Database, who: str) -> Path:
    base = db.sqlite_file
    assert base is not None
    return base.with_name(f"{base.name}.lives") / Path(who).name
