"""The API while what it needs is away or slow: 503 at once and in its own words, never a 202 without a row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from orchestrator.api import threads
from orchestrator.clock import Clock
from orchestrator.engine.context import Engine
from orchestrator.store.session import Session
from tests.support.api import make_engine, register, serving
from tests.support.servers import PostgresServer


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    made = make_engine(postgres_url)
    register(made)
    yield made
    made.db.close()


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == "unavailable"


def test_a_database_that_is_killed_and_comes_back(engine: Engine, postgres_server: PostgresServer) -> None:
    with serving(engine) as api:
        headers = {"Authorization": f"Bearer {api.keys['submit']}"}
        with httpx.Client(base_url=api.url, headers=headers, timeout=30) as http:
            first = http.post("/v1/jobs", json={"workflow": "two-steps"}).json()["id"]
            postgres_server.kill()
            for _ in range(3):
                answer = http.post("/v1/jobs", json={"workflow": "two-steps"})
                refused(answer)
                # What the driver says names hosts, ports and users.
                assert "127.0.0.1" not in answer.text
                assert "connection" not in answer.text.lower()
            refused(http.get(f"/v1/jobs/{first}"))
            refused(http.get("/readyz"))
            refused(http.get("/metrics/global"))
            assert http.get("/livez").status_code == 200
            postgres_server.start()
            answer = httpx.Response(503)
            while answer.status_code == 503:
                answer = http.post("/v1/jobs", json={"workflow": "two-steps"})
            assert answer.status_code == 202
            ids = {job["id"] for job in http.get("/v1/jobs").json()["jobs"]}
            assert ids == {first, answer.json()["id"]}


def test_a_database_that_takes_no_writes_for_a_while(engine: Engine, postgres_server: PostgresServer) -> None:
    """A standby, or a primary that has stepped down: 503, and no connection to it is kept beyond its time."""
    name = engine.db.url.database
    with serving(engine) as api:
        headers = {"Authorization": f"Bearer {api.keys['submit']}"}
        with httpx.Client(base_url=api.url, headers=headers, timeout=30) as http:
            postgres_server._sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
            engine.db.close()
            for _ in range(3):
                refused(http.post("/v1/jobs", json={"workflow": "two-steps"}))
            assert http.get("/v1/jobs").json()["jobs"] == []
            postgres_server._sql(
                f'SET default_transaction_read_only = off; ALTER DATABASE "{name}" RESET default_transaction_read_only'
            )
            answers = [http.post("/v1/jobs", json={"workflow": "two-steps"}) for _ in range(8)]
            assert {answer.status_code for answer in answers[:6]} <= {202, 503}
            assert {answer.status_code for answer in answers[6:]} == {202}, "at most each of the pool's once"


def test_more_requests_than_can_be_answered_are_turned_away_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "WAITING", 2)
    held, go = threading.Semaphore(0), threading.Event()
    now = Session.now

    def slow(session: Session) -> float:
        held.release()
        assert go.wait(30)
        return now(session)

    monkeypatch.setattr(Session, "now", slow)
    with serving(engine, db_pool_size=2) as api, ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(httpx.get, f"{api.url}/readyz", timeout=60) for _ in range(10)]
        assert held.acquire(timeout=30)
        assert held.acquire(timeout=30)
        clock = Clock()
        while sum(one.done() for one in asking) < 4:
            clock.sleep(0.01)
        for one in asking:
            if one.done():
                refused(one.result())
        assert httpx.get(f"{api.url}/livez").status_code == 200  # the loop is free
        go.set()
        assert sorted(one.result().status_code for one in asking) == [200] * 6 + [503] * 4


def test_a_call_does_not_wait_for_ever_behind_a_stalled_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE", 0.2)
    held, go = threading.Event(), threading.Event()

    def slow(_: Session) -> float:
        held.set()
        assert go.wait(30)
        return 0.0

    monkeypatch.setattr(Session, "now", slow)
    with serving(engine, db_pool_size=1) as api, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.get, f"{api.url}/readyz", timeout=60)
        assert held.wait(30)
        refused(httpx.get(f"{api.url}/readyz"))
        go.set()
        assert first.result().status_code == 200


def test_a_bug_is_an_answer_that_tells_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret inner thing")

    with serving(engine) as api:
        monkeypatch.setattr("orchestrator.engine.queries.list_jobs", broken)
        headers = {"Authorization": f"Bearer {api.keys['submit']}"}
        answer = httpx.get(f"{api.url}/v1/jobs", headers=headers)
        page = httpx.get(f"{api.url}/metrics").text
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert 'route="/v1/jobs",status="500"' in page
