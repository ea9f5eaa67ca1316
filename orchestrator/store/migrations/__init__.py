"""Schema changes, by Alembic. Each says whether it is safe before or after the new code runs (``SAFE``).

A change's file begins with its revision, and a later one has the greater number: so what a database has and what it
needs are compared without Alembic, which is loaded only where there is something to change.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from orchestrator.clock import Clock
from orchestrator.domain.errors import Locked, SchemaOutdated
from orchestrator.store.database import Database
from orchestrator.store.session import translated
from orchestrator.store.tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

#: The PostgreSQL advisory lock that keeps two migrations apart.
LOCK = 7_305_112_004
#: Seconds a change waits for a table, between two tries, and how often it is tried.
LOCK_WAIT, LOCK_PAUSE, TRIES = 0.5, 0.5, 60


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


@cache
def revisions() -> tuple[str, ...]:
    """Every revision this code knows, the oldest first."""
    return tuple(sorted(path.name.partition("_")[0] for path in Path(__file__).parent.glob("versions/[0-9]*_*.py")))


def head() -> str:
    """The revision this code needs."""
    return revisions()[-1]


def current(db: Database) -> str | None:
    """The revision the database has; None for an empty one."""
    with translated(), db.engine.connect() as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
    return None if found is None else str(found)


def upgrade(db: Database) -> tuple[str | None, str]:
    """Brings the database to this code's schema; safe to run twice, at once, and beside running processes.

    A change that must wait for a table makes all who come after it wait too: it gives way after ``LOCK_WAIT`` and is
    tried again. Answers (revision before, revision after). Raises ``Unavailable``; ``Locked`` after ``TRIES``.
    """
    before = current(db)
    if before == head():
        return before, before
    for left in reversed(range(TRIES)):
        try:
            _upgrade(db)
            break
        except Locked:
            if not left:
                raise
            Clock().sleep(LOCK_PAUSE)
    return before, head()


def _upgrade(db: Database) -> None:
    from alembic import command

    config = _config()
    with translated(), db.engine.connect() as connection:
        if db.dialect.name == "postgresql":
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql("SET lock_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
            connection.exec_driver_sql(f"SET lock_timeout = {int(LOCK_WAIT * 1000)}")
            connection.commit()
        try:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        finally:
            if db.dialect.name == "postgresql":
                connection.rollback()
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({LOCK})")
                connection.commit()
                connection.invalidate()  # it carries session settings: do not give it back to the pool


def check(db: Database) -> None:
    """Raises ``SchemaOutdated`` when the database is older or newer than this code."""
    found = current(db)
    if found == head():
        return
    if found is None:
        raise SchemaOutdated("the database has no schema yet.", mend="Run: orchestrator migrate")
    if found in revisions():
        raise SchemaOutdated(
            f"the database schema is at {found}, this version needs {head()}.", mend="Run: orchestrator migrate"
        )
    raise SchemaOutdated(
        f"the database schema {found} is newer than this version knows.", mend="Install the newer version."
    )
