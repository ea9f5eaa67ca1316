"""Breakers as people meet them: over HTTP, in the metrics, and what the doctor says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.result import GaveUp
from orchestrator.engine.context import Engine
from orchestrator.engine.doctor import doctor
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.engine.submit import Submission, submit
from orchestrator.settings import Settings
from orchestrator.store.feed import queues_with_backlog
from orchestrator.telemetry.global_ import global_metrics
from tests.support.api import Api, add_key, make_engine, register, serving
from tests.support.bench import Bench

FLOW: dict[str, Any] = {
    "name": "frail",
    "agents": {"frail": {"kind": "http", "url": "https://api.example.com/x", "breaker": {"calls": 1}}},
    "steps": [{"id": "a", "agent": "frail"}],
}


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    engine = make_engine(sqlite_url)
    register(engine, FLOW)
    with serving(engine) as running:
        yield running
    engine.db.close()


def client(api: Api, key: str) -> httpx.Client:
    return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def break_it(engine: Engine) -> None:
    """Its one call fails."""
    worker = Bench(engine.db.url.render_as_string(False))
    submit(worker.engine, Submission("frail"))
    for queue in engine.db.run(queues_with_backlog, readonly=True):
        worker.engine.feed.pump(queue)
    ref = worker.take()
    row = claim(worker.engine, [ref])[ref].row
    failure = Failure(FailureClass.TRANSIENT, "could not connect")
    assert settle(worker.engine, [Settle(row.job_id, row.path, row.ref, row.fence, GaveUp(failure))])[0].won
    worker.close()


def test_it_is_seen_and_reset(api: Api) -> None:
    break_it(api.engine)
    with client(api, api.keys["operate"]) as http:
        listed = http.get("/v1/breakers").json()["breakers"]
        assert [(row["name"], row["kind"], row["state"]) for row in listed] == [
            ("frail", "agent", "open"),
            ("host:api.example.com", "provider", "open"),
        ]
        says = "1 of 1 calls failed within 60 s"
        assert listed[0]["tripped_by"] == {"signal": "failures", "class": "transient", "says": says}
        for _ in range(2):  # again is no error
            done = http.post("/v1/breakers/host:api.example.com/reset", json={"note": "they said sorry"})
            assert (done.status_code, done.json()["breakers"][0]["state"]) == (200, "closed")
        (entry,) = http.get("/v1/audit", params={"subject": "host:api.example.com"}).json()["entries"]
        assert (entry["what"], entry["who"], entry["why"]) == (
            "breaker.reset",
            "operate of default",
            "they said sorry",
        )
        opened = http.post("/v1/breakers/host:api.example.com/open", json={"seconds": 600, "note": "still sorry"})
        assert [row["tripped_by"]["signal"] for row in opened.json()["breakers"]] == ["hand"]
        assert http.post("/v1/breakers/frail/open", json={"seconds": 0}).status_code == 422
        assert http.post("/v1/breakers/nobody/open", json={"seconds": 5}).status_code == 404
        missing = http.post("/v1/breakers/nobody/reset")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_who_may_see_and_reset_it(api: Api) -> None:
    break_it(api.engine)
    with client(api, api.keys["submit"]) as reader:
        assert len(reader.get("/v1/breakers").json()["breakers"]) == 2
        assert reader.post("/v1/breakers/frail/reset").status_code == 403
    with client(api, add_key(api.engine, "operate", "other")) as stranger:
        assert stranger.get("/v1/breakers").json()["breakers"] == []
        assert stranger.post("/v1/breakers/frail/reset").status_code == 404
    with client(api, api.keys["admin"]) as admin:
        done = admin.post("/v1/breakers/frail/reset", params={"tenant": "*"})
        assert [row["tenant"] for row in done.json()["breakers"]] == ["default"]


def test_the_metric_and_the_doctor_name_it(api: Api) -> None:
    assert b"orchestrator_breaker_open{" not in global_metrics(api.engine)
    break_it(api.engine)
    assert b'orchestrator_breaker_open{agent="frail"} 1.0' in global_metrics(api.engine)
    settings = Settings.load(env_file=None, database_url=api.engine.db.url.render_as_string(False))
    found = [one for one in doctor(api.engine, settings, lambda: {"kind": "memory"}) if one.check == "breaker_open"]
    assert [one.where for one in found] == ["frail", "host:api.example.com"]
    assert "orchestrator breakers reset frail" in found[0].mend
    with client(api, api.keys["operate"]) as http:
        http.post("/v1/breakers/frail/reset")
    assert b'orchestrator_breaker_open{agent="frail"} 0.0' in global_metrics(api.engine)
