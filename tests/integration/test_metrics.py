"""The global page equals what SQL counts; the API times its own requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.errors import Unavailable
from orchestrator.domain.ids import Incarnation
from orchestrator.engine import cancel, dead_letters, presence
from orchestrator.engine.context import Engine
from orchestrator.engine.presence import Registration
from orchestrator.engine.submit import Submission, submit
from orchestrator.store import desk
from orchestrator.telemetry.global_ import COUNTERS, GlobalMetrics, global_metrics
from orchestrator.testing import ListDispatcher
from tests.support.api import do, finish, make_engine, register, serving


@pytest.fixture(params=["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = make_engine(request.getfixturevalue(request.param))
    register(made)
    yield made
    made.db.close()


def samples(page: bytes | str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = page if isinstance(page, str) else page.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is said twice"
            found[key] = sample.value
    return found


def value(page: bytes, name: str, **labels: str) -> float | None:
    return samples(page).get((f"orchestrator_{name}", tuple(sorted(labels.items()))))


def test_the_page_equals_what_sql_counts(engine: Engine) -> None:
    ids = [submit(engine, Submission("two-steps")).job.id for _ in range(5)]
    finish(engine, ids[0])
    do(engine, ids[1], "first", fail="no")
    do(engine, ids[2], "first", fail="no")
    [letter] = [found for found in engine.db.run(lambda s: desk.letters(s, tenant=None)) if found["job_id"] == ids[2]]
    dead_letters.replay(engine, letter["id"], by="me")
    cancel.cancel(engine, ids[3])
    page = global_metrics(engine)

    assert value(page, "jobs_submitted_total", workflow="two-steps") == 5
    assert value(page, "jobs_finished_total", workflow="two-steps", state="succeeded") == 1
    assert value(page, "jobs_finished_total", workflow="two-steps", state="failed") == 2
    assert value(page, "jobs_finished_total", workflow="two-steps", state="cancelled") == 1
    assert value(page, "dead_letters_total", workflow="two-steps", reason="permanent") == 2
    assert value(page, "dead_letters_replayed_total", workflow="two-steps") == 1
    assert value(page, "attempts_total", agent="echo", failure="") == 2
    assert value(page, "attempts_total", agent="echo", failure="permanent") == 2
    states = {"succeeded": 1, "failed": 1, "running": 1, "cancelled": 1, "queued": 1, "paused": 0}
    assert {state: value(page, "jobs", state=state) for state in states} == states
    assert value(page, "dead_letters_open", workflow="two-steps") == 1
    assert value(page, "approvals_waiting") == 0
    assert value(page, "queue_ready_steps", queue="default") == 2
    assert value(page, "queue_running_steps", queue="default") == 0
    assert (value(page, "queue_oldest_ready_seconds", queue="default") or -1) >= 0
    assert value(page, "broker_up") == 1


def test_slots_are_those_of_live_workers_that_take_work(engine: Engine) -> None:
    for name, slots, queues in (("a", 4, ("default",)), ("b", 8, ("default", "heavy"))):
        presence.join(engine, Registration(Incarnation(name), name, "worker", queues, slots, "1"))
    presence.beat(
        engine, Registration(Incarnation("b"), "b", "worker", (), 8, "1"), busy=1, lost_slots=3, draining=False
    )  # type: ignore[arg-type]
    page = global_metrics(engine)
    assert value(page, "worker_slots", queue="default") == 9
    assert value(page, "worker_slots", queue="heavy") == 5
    assert value(page, "queue_ready_steps", queue="heavy") == 0


def test_totals_never_fall_when_a_process_goes(engine: Engine) -> None:
    submit(engine, Submission("two-steps"))
    engine.process = Incarnation("the-next-life")
    submit(engine, Submission("two-steps"))
    assert value(global_metrics(engine), "jobs_submitted_total", workflow="two-steps") == 2


def test_one_reading_serves_for_a_second(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = engine.clock.monotonic()
    monkeypatch.setattr(type(engine.clock), "monotonic", lambda _: now)
    page = GlobalMetrics(engine)
    assert value(page.text(), "jobs", state="queued") == 0
    submit(engine, Submission("two-steps"))
    assert value(page.text(), "jobs", state="queued") == 0
    now += 1.0
    assert value(page.text(), "jobs", state="queued") == 1


class DeadBroker(ListDispatcher):
    def broker_epoch(self) -> str | None:
        raise Unavailable("the broker does not answer.")


def test_a_dead_broker_degrades_and_stops_nothing(engine: Engine) -> None:
    engine.feed.dispatcher = DeadBroker()
    with serving(engine) as api:
        ready = httpx.get(f"{api.url}/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["broker"]) == (200, "degraded", "down")
        assert value(httpx.get(f"{api.url}/metrics/global").content, "broker_up") == 0
        headers = {"Authorization": f"Bearer {api.keys['submit']}"}
        made = httpx.post(f"{api.url}/v1/jobs", json={"workflow": "two-steps"}, headers=headers)
        assert made.status_code == 202


def test_the_api_times_requests_by_route_and_never_by_what_callers_invent(engine: Engine) -> None:
    with serving(engine) as api:
        headers = {"Authorization": f"Bearer {api.keys['submit']}"}
        httpx.get(f"{api.url}/v1/jobs/abc", headers=headers)
        httpx.get(f"{api.url}/v1/jobs/def", headers=headers)
        httpx.get(f"{api.url}/nowhere/1")
        httpx.request("BREW", f"{api.url}/nowhere/2")
        httpx.get(f"{api.url}/v1/jobs")
        job = httpx.post(f"{api.url}/v1/jobs", json={"workflow": "two-steps"}, headers=headers).json()["id"]
        cancel.cancel(engine, job)
        httpx.get(f"{api.url}/v1/jobs/{job}", headers={**headers, "Prefer": "wait=5"})
        page = httpx.get(f"{api.url}/metrics").content
    name = "http_request_duration_seconds_count"
    assert value(page, name, route="/v1/jobs/{job_id}", method="GET", status="404") == 2
    assert value(page, name, route="none", method="GET", status="404") == 1
    assert value(page, name, route="none", method="other", status="404") == 1
    assert value(page, name, route="/v1/jobs", method="GET", status="401") == 1
    assert value(page, name, route="/v1/jobs/{job_id} wait", method="GET", status="200") == 1
    assert value(page, name, route="/v1/jobs/{job_id}", method="GET", status="200") is None
    assert b"nowhere" not in page
    assert value(page, "jobs", state="queued") is None


def test_dev_serves_both_on_one_page(engine: Engine) -> None:
    with serving(engine, dev=True) as api:
        found = samples(httpx.get(f"{api.url}/metrics").content)
    names = {name for name, _ in found}
    assert {"orchestrator_jobs", "orchestrator_fenced_writes_total", "orchestrator_broker_up"} <= names


def test_every_global_series_is_documented(engine: Engine) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    names = {name for name, _ in samples(global_metrics(engine))} | {f"orchestrator_{name}" for name in COUNTERS}
    assert sorted(name for name in names if f"`{name}" not in page) == []
