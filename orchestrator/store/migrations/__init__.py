"""Schema changes, by Alembic. Each says whether it is safe before or after the new code runs (``SAFE``)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from orchestrator.clock import Clock
from orchestrator.domain.errors import Locked, SchemaOutdated
from orchestrator.store.database import Database, translated
from orchestrator.store.tables import VERSION_TABLE

#: The PostgreSQL advisory lock that keeps two migrations apart.
LOCK = 7_305_112_004
#: Seconds a change waits for a table, between two tries, and how often it is tried.
LOCK_WAIT, LOCK_PAUSE, TRIES = 0.5, 0.5, 60


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """The revision this code needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(db: Database) -> str | None:
    """The revision the database has; None for an empty one."""
    with translated(), db.engine.connect() as connection:
        return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


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
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found in known:
        raise SchemaOutdated(
            f"the database schema is at {found}, this version needs {head()}.", mend="Run: orchestrator migrate"
        )
    raise SchemaOutdated(
        f"the database schema {found} is newer than this version knows.", mend="Install the newer version."
    )
