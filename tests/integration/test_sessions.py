"""What a transaction is on a driver's connection."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from orchestrator.store.database import Database
from orchestrator.store.session import MOVED, Moved, Session


@pytest.fixture
def db(postgres_url: str) -> Iterator[Database]:
    it = Database(postgres_url, pool_size=1)
    it.run(lambda session: session.execute("CREATE TABLE t (n int PRIMARY KEY)"))
    yield it
    it.close()


def numbers(db: Database) -> list[int]:
    return [row["n"] for row in db.run(lambda session: session.rows("SELECT n FROM t ORDER BY n"))]


def test_a_statement_alone_is_its_own_transaction(db: Database) -> None:
    def work(session: Session) -> None:
        session.alone("INSERT INTO t VALUES (:n) RETURNING n", {"n": 1})
        raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        db.run(work)
    assert numbers(db) == [1]


def test_after_another_it_ends_their_transaction(db: Database) -> None:
    def work(session: Session) -> None:
        session.execute("INSERT INTO t VALUES (1)")
        session.alone("INSERT INTO t VALUES (:n) RETURNING n", {"n": 2})
        raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        db.run(work)
    assert numbers(db) == [1, 2]


def test_after_another_one_that_refuses_itself_takes_them_back(db: Database) -> None:
    def refused(session: Session) -> None:
        session.execute("INSERT INTO t VALUES (1)")
        session.alone(f"SELECT CAST(:n || '{MOVED}' AS integer)", {"n": "2"})

    with pytest.raises(Moved):
        db.run(refused)
    assert numbers(db) == []
    db.run(lambda session: session.execute("INSERT INTO t VALUES (3)"))  # the connection is as good as before
    assert numbers(db) == [3]


def test_what_is_asked_last_ends_the_transaction(db: Database) -> None:
    def work(session: Session) -> None:
        session.together(("INSERT INTO t VALUES (1)", {}), ("INSERT INTO t VALUES (2) RETURNING n", {}), last=True)
        session.execute("INSERT INTO t VALUES (3)")
        raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        db.run(work)
    assert numbers(db) == [1, 2]


def test_one_that_refuses_itself_writes_nothing(db: Database) -> None:
    def refused(session: Session) -> None:
        session.alone(
            f"WITH w AS (INSERT INTO t VALUES (:n) RETURNING 1) SELECT CAST('{MOVED}' || count(*) AS integer) FROM w",
            {"n": 1},
        )

    with pytest.raises(Moved):
        db.run(refused)
    assert numbers(db) == []


def backend(session: Session) -> int:
    return int(session.value("SELECT pg_backend_pid()"))


def test_a_connection_that_was_cut_off_within_a_statement_is_not_given_to_the_next(db: Database) -> None:
    before = db.run(backend)

    def cut_off(session: Session) -> None:
        session.execute("INSERT INTO t VALUES (1)")
        session.raw.pgconn.send_query(b"SELECT pg_sleep(60)")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.run(cut_off)
    assert db.run(backend) != before
    assert numbers(db) == []


@pytest.mark.parametrize("first", ["rows", "execute", "many", "together"])
def test_whatever_comes_first_begins_a_transaction(db: Database, first: str) -> None:
    """Its first statement is taken back with the others."""
    insert = "INSERT INTO t VALUES (:n) RETURNING n"

    def work(session: Session) -> None:
        if first == "rows":
            session.rows(insert, {"n": 1})
        elif first == "execute":
            session.execute(insert, {"n": 1})
        elif first == "many":
            session.many(insert, [{"n": 1}, {"n": 2}])
        else:
            session.together((insert, {"n": 1}), (insert, {"n": 2}))
        session.execute(insert, {"n": 9})
        raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        db.run(work)
    assert numbers(db) == []
    same = db.run(backend)
    assert db.run(backend) == same, "the connection is as good as before"


def test_others_find_the_connection_as_the_driver_makes_it(db: Database) -> None:
    """Migrations begin and end their transactions through SQLAlchemy."""
    numbers(db)
    with pytest.raises(RuntimeError, match="afterwards"):
        db.run(_fails)
    with db.engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        connection.rollback()
    assert numbers(db) == []


def _fails(session: Session) -> None:
    session.execute("INSERT INTO t VALUES (5)")
    raise RuntimeError("afterwards")


def test_what_is_asked_together_is_answered_in_order(db: Database) -> None:
    with db.connect() as session:
        answers = session.together(
            ("INSERT INTO t VALUES (:n)", {"n": 1}),
            ("SELECT n FROM t", {}),
            ("UPDATE t SET n = n + 1 RETURNING n", {}),
        )
    assert answers == [[], [{"n": 1}], [{"n": 2}]]
    with pytest.raises(psycopg.errors.UniqueViolation), db.connect() as session:
        session.together(("SELECT n FROM t", {}), ("INSERT INTO t VALUES (2)", {}), ("SELECT n FROM t", {}))
    assert numbers(db) == [2]
