"""D3: the database's disk is full, then freed: nothing is answered 202 that is not there, and work goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import event

from orchestrator.domain.ids import JobId
from orchestrator.domain.workflow import Workflow
from orchestrator.engine.recover import migrate
from orchestrator.engine.submit import register
from orchestrator.engine.verify import verify
from orchestrator.local.process import Account
from orchestrator.settings import Settings
from orchestrator.store.database import Database
from tests.support.api import serving
from tests.support.chaos_database import Stranger
from tests.support.cluster import QUICK, Cluster
from tests.support.cluster_children import Warm
from tests.support.load_client import everything_ended, load_client, refused
from tests.support.servers import PostgresServer
from tests.support.small_disk import SmallDisk, small_disk
from workers.embedded import Embedded

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

POOL = 4
SECONDS = [pytest.param(3.0, id="3s"), pytest.param(20.0, id="20s", marks=pytest.mark.soak)]


@contextmanager
def tables_on_a_small_disk() -> Iterator[tuple[PostgresServer, SmallDisk, str]]:
    """The tables are on it, the log is not: the server lives, and says 53100."""
    with small_disk(32) as disk, PostgresServer() as server:
        place = disk.path / "tables"
        place.mkdir(mode=0o700)
        _give(place, server.account)
        with Stranger(server.url) as stranger:
            stranger.session.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            stranger.session.execute("CREATE DATABASE small TEMPLATE template0 TABLESPACE small")
        yield server, disk, server.database_url("small")


@contextmanager
def all_on_a_small_disk() -> Iterator[tuple[PostgresServer, SmallDisk, str]]:
    """The log is on it as well: the server panics, and cannot start before there is room."""
    sizes = {"min_wal_size": "32MB", "max_wal_size": "48MB"}
    with small_disk(200) as disk, PostgresServer(directory=disk.path / "server", settings=sizes) as server:
        yield server, disk, server.create_database()


def use_up_the_log(server: PostgresServer) -> None:
    """Writes to the log alone until it cannot grow, which PostgreSQL does not survive."""
    with suppress(psycopg.OperationalError), Stranger(server.url) as stranger:
        for _ in range(200):
            stranger.session.execute("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000))")


def _give(path: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(path, account.uid, account.gid)


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("where", [tables_on_a_small_disk, all_on_a_small_disk], ids=["tables", "all"])
def test_the_disk_of_postgresql_is_full_for_a_while(
    where: Callable[[], Any],
    redis_url: str,
    warm: Warm,
    tmp_path: Path,
    seconds: float,
    report: Callable[..., None],
) -> None:
    """D3: submits are refused with 503 until there is room; what had been accepted ends."""
    with where() as (server, disk, url):
        db = Database(url)
        migrate(db)
        db.close()
        with Cluster(warm, url, redis_url, tmp_path, DB_POOL_SIZE=str(POOL)) as it, load_client(it, POOL) as http:
            it.scheduler()
            workers = [it.worker(supervised=False) for _ in range(2)]
            for number in range(10):
                http.until_accepted(f"before-{number}")
            disk.fill()
            if where is all_on_a_small_disk:
                use_up_the_log(server)
            before = http.until_refused("filling")
            until, asked, refusals = it.clock.monotonic() + seconds, 0, 0
            while it.clock.monotonic() < until:
                asked += 1
                answer = http.submit(f"full-{asked}")
                if answer.status_code != 202:  # a page may have room for one more
                    refused(answer)
                    refusals += 1
            assert refusals > 0
            disk.free()
            died = not server.running
            server.start()  # as whoever keeps it running does; nothing if it lived
            back = it.clock.now()
            for number in range(10):
                http.until_accepted(f"after-{number}")
            assert all(worker.alive for worker in workers)
            figure = f"{before} accepted before the first 503, {refusals} refused"
            figure += ", the server died and was started again" if died else ""
            everything_ended(it, http, report, "D3", figure, back)


def test_a_sqlite_file_that_may_not_grow(tmp_path: Path, report: Callable[..., None]) -> None:
    """D3: ``database or disk is full``, raised by SQLite itself at a page count that is then raised."""
    settings = Settings.load(
        env_file=None,
        database_url=f"sqlite:///{tmp_path / 'small.db'}",
        **{name.lower(): value for name, value in QUICK.items()},
    )
    pages = [1_000_000]
    with Embedded(settings) as house:
        engine = house.engine

        @event.listens_for(engine.db.engine, "checkout")
        def limit(connection: Any, *_: Any) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages[0]}")

        agents = {"echo": {"kind": "scripted", "script": [{"output": "x" * 2000}]}}
        steps = [{"id": f"s{n}", "agent": "echo"} for n in range(4)]
        register(engine, Workflow.model_validate({"name": "load", "agents": agents, "steps": steps}))
        accepted: list[JobId] = []

        def submit(http: httpx.Client) -> httpx.Response:
            answer = http.post("/v1/jobs", json={"workflow": "load", "input": "y" * 2000})
            if answer.status_code == 202:
                accepted.append(JobId(answer.json()["id"]))
            return answer

        with serving(engine) as api:
            key = {"Authorization": f"Bearer {api.keys['operate']}"}
            with httpx.Client(base_url=api.url, headers=key, timeout=60) as http:
                assert submit(http).status_code == 202
                house.wait(accepted[0], 30)
                with engine.db.connect(readonly=True) as session:
                    pages[0] = int(session.value("PRAGMA page_count")) + 30
                answer = submit(http)
                while answer.status_code == 202:
                    answer = submit(http)
                refused(answer)
                taken = len(accepted)
                for _ in range(20):
                    answer = submit(http)
                    if answer.status_code != 202:
                        refused(answer)
                pages[0] = 1_000_000
                while (answer := submit(http)).status_code != 202:
                    refused(answer)
        back = engine.clock.monotonic()
        assert {house.wait(job, 60)["state"] for job in accepted} == {"succeeded"}
        with engine.db.connect(readonly=True) as session:
            known = {row["id"] for row in session.rows("SELECT id FROM jobs")}
        assert set(accepted) == known
        figure = f"SQLite: {taken} accepted before the first 503"
        report("D3", jobs=len(known), recovery=[engine.clock.monotonic() - back], figure=figure)
        assert verify(engine) == []
