"""Submitting in the caller's own transaction: the job exists exactly if that commits."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from orchestrator.client import AsyncClient, Client
from orchestrator.domain.errors import (
    ConfigError,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
    OrchestratorError,
    SchemaOutdated,
    SubmitInProgress,
)
from orchestrator.domain.ids import JobId
from orchestrator.engine import queries
from orchestrator.engine.context import Engine
from tests.support.api import TWO_STEPS, finish, make_engine, register

ON_BOTH = ["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)]


@pytest.fixture(params=ON_BOTH)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = make_engine(request.getfixturevalue(request.param))
    register(made)
    with made.db.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id integer)")
    yield made
    made.db.close()


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as made:
        yield made


def url_of(engine: Engine) -> str:
    return engine.db.url.render_as_string(hide_password=False)


@contextmanager
def sql_alchemy(engine: Engine) -> Iterator[Any]:
    made = sqlalchemy.create_engine(url_of(engine), poolclass=NullPool)
    with made.connect() as connection:
        yield connection


@contextmanager
def orm(engine: Engine) -> Iterator[Any]:
    made = sqlalchemy.create_engine(url_of(engine), poolclass=NullPool)
    with Session(made) as session:
        yield session


@contextmanager
def bare(engine: Engine) -> Iterator[Any]:
    """psycopg or sqlite3, with the rows an application likes."""
    if engine.db.dialect.name == "postgresql":
        plain = engine.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection: Any = psycopg.connect(plain, row_factory=dict_row)  # type: ignore[arg-type]
    else:
        connection = sqlite3.connect(engine.db.url.database or "")
        connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()


def order(connection: Any) -> None:
    """The application's own write."""
    statement = "INSERT INTO orders VALUES (1)"
    connection.execute(
        text(statement) if not isinstance(connection, (psycopg.Connection, sqlite3.Connection)) else statement
    )


def orders(engine: Engine) -> int:
    return int(engine.db.run(lambda session: session.value("SELECT count(*) FROM orders"), readonly=True))


def ids(engine: Engine) -> list[str]:
    return [job["id"] for job in queries.list_jobs(engine, tenant=None)[0]]


each_way = pytest.mark.parametrize("opened", [sql_alchemy, orm, bare])
Opened = Callable[[Engine], Any]


@each_way
@pytest.mark.parametrize("ordered", ["before", "after", "never"])
def test_the_job_is_there_once_the_callers_transaction_commits(
    engine: Engine, client: Client, opened: Opened, ordered: str
) -> None:
    with opened(engine) as connection:
        if ordered == "before":
            order(connection)
        job = client.submit("two-steps", {"n": 1}, connection=connection, key="k", tags={"a": "b"}, deadline=60)
        if ordered == "after":
            order(connection)
        connection.commit()
    assert ids(engine) == [job.id]
    assert orders(engine) == (ordered != "never")
    finish(engine, job.id, "done")
    shown = queries.show_job(engine, JobId(job.id))
    assert (shown["state"], shown["input"], shown["output"]) == ("succeeded", {"n": 1}, "done")


@each_way
def test_nothing_is_there_after_a_rollback(engine: Engine, client: Client, opened: Opened) -> None:
    with opened(engine) as connection:
        client.submit("two-steps", connection=connection)
        order(connection)
        connection.rollback()
        client.submit("two-steps", connection=connection, key="k")
        connection.rollback()
    with opened(engine) as connection:
        client.submit("two-steps", connection=connection)
        # closed without a commit
    assert (ids(engine), orders(engine)) == ([], 0)


@each_way
def test_nobody_else_sees_it_before_the_commit(engine: Engine, client: Client, opened: Opened) -> None:
    with opened(engine) as connection:
        job = client.submit("two-steps", connection=connection)
        assert ids(engine) == []
        connection.commit()
    assert ids(engine) == [job.id]


DYING = """
import os, signal, sys, sqlalchemy
from orchestrator.client import Client
connection = sqlalchemy.create_engine(sys.argv[1]).connect()
job = Client().submit("two-steps", connection=connection, key="k")
connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
if sys.argv[2] == "after":
    connection.commit()
print(job.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_process_killed_before_its_commit_leaves_neither_and_after_it_both(engine: Engine, killed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DYING, url_of(engine), killed], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected = [done.stdout.strip()] if killed == "after" else []
    assert (ids(engine), orders(engine)) == (expected, len(expected))


@each_way
def test_after_a_refusal_the_transaction_goes_on(engine: Engine, client: Client, opened: Opened) -> None:
    with opened(engine) as connection:
        order(connection)
        first = client.submit("two-steps", {"n": 1}, connection=connection, key="k")
        wrong: list[tuple[type[OrchestratorError], dict[str, Any]]] = [
            (NotFound, {"workflow": "nowhere"}),
            (InvalidInput, {"workflow": "two-steps", "input": {"n": "x"}}),
            (IdempotencyMismatch, {"workflow": "two-steps", "input": {"n": 2}, "key": "k"}),
            (InvalidInput, {"workflow": TWO_STEPS}),
        ]
        for kind, arguments in wrong:
            with pytest.raises(kind):
                client.submit(**arguments, connection=connection)
        assert client.submit("two-steps", {"n": 1}, connection=connection, key="k").id == first.id
        order(connection)
        connection.commit()
    assert (ids(engine), orders(engine)) == ([first.id], 2)


def test_a_large_input_is_kept_whole(engine: Engine, client: Client) -> None:
    large = {"text": "é" * 300_000}
    with sql_alchemy(engine) as connection:
        job = client.submit("two-steps", large, connection=connection)
        connection.commit()
    assert queries.show_job(engine, JobId(job.id))["input"] == large


def test_tenants_hold_here_too(engine: Engine) -> None:
    with Client(tenant="acme") as client, sql_alchemy(engine) as connection:
        assert client.submit("two-steps", connection=connection).tenant == "acme"


# -- connections that would break the promise


def test_a_connection_that_commits_by_itself_is_refused(engine: Engine, client: Client) -> None:
    with bare(engine) as connection:
        if isinstance(connection, sqlite3.Connection):
            connection.isolation_level = None
        else:
            connection.autocommit = True
        with pytest.raises(ConfigError, match="commits every statement"):
            client.submit("two-steps", connection=connection)
        if isinstance(connection, psycopg.Connection):
            with connection.transaction():
                client.submit("two-steps", connection=connection)
                raise psycopg.Rollback
            assert ids(engine) == []
            with connection.transaction():
                client.submit("two-steps", connection=connection)
        else:
            connection.execute("BEGIN")
            client.submit("two-steps", connection=connection)
            connection.execute("COMMIT")
    assert len(ids(engine)) == 1
    if engine.db.dialect.name == "postgresql":
        made = sqlalchemy.create_engine(url_of(engine), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with made.connect() as plain, pytest.raises(ConfigError, match="commits every statement"):
            client.submit("two-steps", connection=plain)


def test_another_database_is_refused_and_left_as_it_was(
    engine: Engine, client: Client, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    if engine.db.dialect.name == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = server.create_database()
    else:
        url = f"sqlite:///{tmp_path / 'other.db'}"
    made = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with made.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE jobs (id text)")
        with pytest.raises(SchemaOutdated):
            client.submit("two-steps", connection=connection)
        connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() == 0
    if engine.db.dialect.name == "postgresql":
        server.drop_database(url)


@each_way
def test_a_database_of_another_version_is_refused(engine: Engine, client: Client, opened: Opened) -> None:
    with engine.db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orchestrator_version SET version_num = 'older'")
    with opened(engine) as connection:
        order(connection)
        with pytest.raises(SchemaOutdated, match="orchestrator migrate"):
            client.submit("two-steps", connection=connection)
        connection.commit()
    assert (ids(engine), orders(engine)) == ([], 1)


def test_what_is_no_connection_is_refused(client: Client) -> None:
    with pytest.raises(ConfigError, match=r"builtins\.str is not understood"):
        client.submit("two-steps", connection="postgresql://…")


# -- what only PostgreSQL can show: two transactions open at once


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Engine]:
    made = make_engine(postgres_url)
    register(made)
    yield made
    made.db.close()


def test_open_transactions_do_not_wait_for_each_other(postgres: Engine, client: Client) -> None:
    same = {"text": "x" * 100_000}
    with sql_alchemy(postgres) as one, sql_alchemy(postgres) as two, bare(postgres) as three:
        for connection in (one, two):
            connection.exec_driver_sql("SET lock_timeout = '1s'")
        three.execute("SET lock_timeout = '1s'")
        made = [client.submit("two-steps", same, connection=connection).id for connection in (one, two, three)]
        for connection in (three, one, two):
            connection.commit()
    assert set(ids(postgres)) == set(made)


@pytest.mark.parametrize("opened", [sql_alchemy, bare])
def test_a_twin_that_has_not_committed_is_waited_for_two_seconds(
    postgres: Engine, client: Client, opened: Opened
) -> None:
    with sql_alchemy(postgres) as first, opened(postgres) as second:
        job = client.submit("two-steps", connection=first, key="k")
        started = postgres.clock.monotonic()
        with pytest.raises(SubmitInProgress):
            client.submit("two-steps", connection=second, key="k")
        assert 1.5 < postgres.clock.monotonic() - started < 6
        first.commit()
        assert client.submit("two-steps", connection=second, key="k").id == job.id
        second.commit()
    assert ids(postgres) == [job.id]


def test_a_twin_that_rolls_back_makes_way(postgres: Engine, client: Client) -> None:
    with sql_alchemy(postgres) as first, bare(postgres) as second, ThreadPoolExecutor(1) as pool:
        lost = client.submit("two-steps", connection=first, key="k")
        waiting = pool.submit(lambda: client.submit("two-steps", connection=second, key="k"))
        first.rollback()
        job = waiting.result(timeout=10)
        second.commit()
    assert job.id != lost.id
    assert ids(postgres) == [job.id]


def test_the_callers_lock_timeout_is_its_own_again(postgres: Engine, client: Client) -> None:
    with sql_alchemy(postgres) as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '7s'")
        client.submit("two-steps", connection=connection, key="k")
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "7s"


def test_an_asyncio_application_does_the_same(postgres: Engine) -> None:
    async def run() -> None:
        made = create_async_engine(url_of(postgres), poolclass=NullPool)
        async with AsyncClient() as client, made.connect() as connection:
            await client.submit("two-steps", connection=connection)
            await connection.rollback()
            job = await client.submit("two-steps", connection=connection, key="k")
            await connection.commit()
            assert ids(postgres) == [job.id]
            with pytest.raises(InvalidInput, match="AsyncConnection"):
                await client.submit("two-steps", connection=object())
        await made.dispose()

    asyncio.run(run())
