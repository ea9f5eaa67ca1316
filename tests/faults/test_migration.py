"""D7: the schema is changed under load. No job fails, nobody waits long, and a process that does not fit says so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Self

import psycopg
import pytest
from alembic import command

from orchestrator.clock import Clock
from orchestrator.store import migrations
from orchestrator.store.database import Database
from tests.faults.conftest import MakeCluster
from tests.faults.test_random_kills import four_calls
from tests.support.chaos_database import Stranger

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: D7: nobody waits longer for a lock, in seconds.
WAIT = 1.0
SIZES = [pytest.param(1, id="1x"), pytest.param(10, id="10x", marks=pytest.mark.soak)]


def orchestrator(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ORCHESTRATOR_DATABASE_URL": url, "ORCHESTRATOR_BROKER_URL": "redis://127.0.0.1:1/0"}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class LockWatch:
    """The longest that any session has waited for a lock on a table or row, looked at fifty times a second."""

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self._url = url
        self._stop = threading.Event()
        self._clock = Clock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        sql = (
            "SELECT max(extract(epoch FROM clock_timestamp() - waitstart))::float8 FROM pg_locks"
            " WHERE NOT granted AND locktype <> 'advisory'"
        )
        with Stranger(self._url) as stranger:
            while not self._stop.wait(0.02):
                self.longest = max(self.longest, stranger.value(sql) or 0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def migrate(url: str, times: int) -> None:
    """So many at once, then as many again."""
    for _ in range(2):
        with ThreadPoolExecutor(times) as pool:
            for done in pool.map(lambda _: orchestrator(url, "migrate"), range(times)):
                assert done.returncode == 0, done.stderr
                assert f"schema {migrations.head()}" in done.stderr


@pytest.mark.parametrize("size", SIZES)
def test_migrate_beside_running_processes(
    cluster: MakeCluster, postgres_clone: str, report: Callable[..., None], size: int
) -> None:
    """D7: at once and again while jobs run: none fails, no call is repeated; a newer schema stops nobody at work."""
    it = cluster()
    it.scheduler()
    for _ in range(2):
        it.worker(supervised=False)
    load = four_calls(it)
    jobs = it.submit_all(load, [{"n": 0}] * 20 * size)
    with LockWatch(postgres_clone) as watch:
        for _ in range(size):
            migrate(postgres_clone, 2)
            jobs += it.submit_all(load, [{"n": 0}] * 10)
    with Stranger(postgres_clone) as stranger:
        # What an additive migration of the next version is to those who run.
        stranger.session.execute("ALTER TABLE steps ADD COLUMN of_tomorrow text")
        stranger.session.execute("UPDATE orchestrator_version SET version_num = 'tomorrow'")
        jobs += it.submit_all(load, [{"n": 0}] * 10)
        assert it.wait(jobs, 60 + len(jobs)) == {"succeeded": len(jobs)}
        told = orchestrator(postgres_clone, "scheduler")
        assert (told.returncode, "error[schema_outdated]" in told.stderr) == (78, True), told.stderr
        assert "newer than this version knows" in told.stderr
        stranger.session.execute("UPDATE orchestrator_version SET version_num = %s", [migrations.head()])
        stranger.session.execute("ALTER TABLE steps DROP COLUMN of_tomorrow")
    repeated = len(it.ledger.calls()) - 4 * len(jobs)
    report("D7", jobs=len(jobs), repeated=repeated, figure=f"longest wait for a lock {watch.longest:.2f} s")
    assert repeated == 0
    assert watch.longest <= WAIT
    it.check()


TABLES = ("jobs", "steps", "attempts", "events", "payloads", "dead_letters", "workers", "queues")


@contextmanager
def traffic(url: str, threads: int) -> Iterator[list[BaseException]]:
    """Sessions that read and write every table of the first schema, as running processes do; what failed them."""
    failed: list[BaseException] = []
    stop = threading.Event()

    def use() -> None:
        try:
            with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as session:
                while not stop.is_set():
                    for table in TABLES:
                        with session.transaction():
                            session.execute(f"SELECT count(*) FROM {table}")
                            session.execute(f"DELETE FROM {table} WHERE false")
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)

    working = [threading.Thread(target=use, daemon=True) for _ in range(threads)]
    for thread in working:
        thread.start()
    try:
        yield failed
    finally:
        stop.set()
        for thread in working:
            thread.join(30)


def test_the_real_changes_give_way_to_work(postgres_url: str, report: Callable[..., None]) -> None:
    """D7: from the first schema to this one, beside traffic and one long transaction that reads every table.

    Processes of that version cannot be started any more; statements on its tables take the locks that theirs took.
    """
    db = Database(postgres_url)
    config = migrations._config()
    with db.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.commit()
    told = orchestrator(postgres_url, "scheduler")
    assert (told.returncode, "error[schema_outdated]" in told.stderr) == (78, True), told.stderr
    assert "Run: orchestrator migrate" in told.stderr
    with traffic(postgres_url, 4) as failed, LockWatch(postgres_url) as watch, ThreadPoolExecutor(1) as pool:
        with Stranger(postgres_url) as reader, reader.session.transaction():
            for table in TABLES:
                reader.value(f"SELECT count(*) FROM {table}")
            done = pool.submit(migrations.upgrade, db)
            with suppress(TimeoutError):
                done.result(3.0)
            assert not done.done(), "it cannot have changed what is being read"
        assert done.result(60) == ("0001", migrations.head())
    db.close()
    report("D7", figure=f"0001 to {migrations.head()}: longest wait for a lock {watch.longest:.2f} s")
    assert failed == []
    assert watch.longest <= WAIT
