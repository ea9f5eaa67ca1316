"""A witness beside the engine: triggers write down every move of a job's or step's state, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.store.session import Session

TABLES = ("jobs", "steps", "waits")


def watch(session: Session) -> None:
    """From now on."""
    session.execute("CREATE TABLE moves_seen (what text, was text, now text)")
    if session.postgres:
        session.execute(
            "CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO moves_seen VALUES (TG_TABLE_NAME, OLD.state, NEW.state); RETURN NEW; END $$"
        )
    for table in TABLES:
        if session.postgres:
            session.execute(
                f"CREATE TRIGGER note_{table} AFTER UPDATE ON {table} FOR EACH ROW"
                " WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION note_move()"
            )
        else:
            session.execute(
                f"CREATE TRIGGER note_{table} AFTER UPDATE ON {table} FOR EACH ROW WHEN OLD.state <> NEW.state"
                f" BEGIN INSERT INTO moves_seen VALUES ('{table}', OLD.state, NEW.state); END"
            )


def seen(session: Session, table: str) -> set[tuple[str, str]]:
    rows = session.rows("SELECT DISTINCT was, now FROM moves_seen WHERE what = :what", {"what": table})
    return {(row["was"], row["now"]) for row in rows}


def illegal(found: set[tuple[str, str]], legal: Mapping[tuple[Any, Any], str]) -> set[tuple[str, str]]:
    """Those of ``found`` that are neither a legal move nor, as one transaction may make them, two in a row."""
    one = {(was.value, now.value) for was, now in legal}
    two = {(a, d) for a, b in one for c, d in one if b == c}
    return found - one - two
