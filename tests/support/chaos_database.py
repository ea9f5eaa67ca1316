"""What other people do to a PostgreSQL: make it slow, keep a row locked, take every connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import psycopg

from orchestrator.clock import Clock

_OURS = "datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'orchestrator%'"


class Stranger:
    """``with Stranger(url) as stranger``: a session that is not ours, on the same database."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql+psycopg://", "postgresql://")
        self._clock = Clock()

    def __enter__(self) -> Self:
        self.session = psycopg.connect(self._url, autocommit=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def value(self, sql: str, *values: Any) -> Any:
        row = self.session.execute(sql, values or None).fetchone()
        return None if row is None else row[0]

    def connections(self) -> dict[str, int]:
        """Sessions of ours by the name of the application."""
        found = self.session.execute(
            f"SELECT application_name, count(*) FROM pg_stat_activity WHERE {_OURS} GROUP BY application_name"
        )
        return {row[0]: row[1] for row in found}

    @contextmanager
    def slow(self, table: str, seconds: float) -> Iterator[None]:
        """Each INSERT into ``table`` takes ``seconds``."""
        self.session.execute("CREATE TABLE IF NOT EXISTS chaos (seconds float)")
        self.session.execute("DELETE FROM chaos")
        self.session.execute("INSERT INTO chaos VALUES (0)")
        self.session.execute(
            "CREATE OR REPLACE FUNCTION chaos() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_sleep(seconds) FROM chaos WHERE seconds > 0; RETURN NEW; END $$"
        )
        self.session.execute(
            f"CREATE OR REPLACE TRIGGER chaos BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION chaos()"
        )
        self.session.execute("UPDATE chaos SET seconds = %s", [seconds])
        try:
            yield
        finally:
            self.session.execute("UPDATE chaos SET seconds = 0")

    @contextmanager
    def locking(self, select: str, *values: Any) -> Iterator[None]:
        """Keeps the rows of ``select`` locked."""
        with psycopg.connect(self._url) as session:
            assert session.execute(f"{select} FOR UPDATE", values).fetchall(), "there is nothing to lock"
            yield
            session.rollback()

    @contextmanager
    def taking_every_connection(self) -> Iterator[int]:
        """Ends our sessions and takes each that the server gives, until none of ours is left; answers how many."""
        taken: list[psycopg.Connection[Any]] = []
        try:
            while True:
                with suppress(psycopg.OperationalError):
                    while True:
                        taken.append(psycopg.connect(self._url, autocommit=True))
                if not self.value(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {_OURS}"):
                    break
                self._clock.sleep(0.02)
            yield len(taken)
        finally:
            for connection in taken:
                connection.close()
