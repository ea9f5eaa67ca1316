"""Webhooks over real HTTP: from submit to a receiver on a port, and everything a receiver may do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Signer
from standardwebhooks import WebhookVerificationError

from orchestrator import bootstrap
from orchestrator.api import sse
from orchestrator.clock import Clock
from orchestrator.domain.event_schema import event_schema, message_schema
from orchestrator.domain.ids import JobId
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.webhook import Webhook
from orchestrator.engine import queries
from orchestrator.engine.context import Engine
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.submit import Submission
from orchestrator.engine.submit import submit as use_case
from orchestrator.settings import Settings
from orchestrator.telemetry.metrics import Meters
from tests.support.api import Api, do, finish, make_engine, register, serving, sse_frames
from tests.support.receiver import Answer, Got, Receiver, receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
QUICK = {"webhook_retry_first": 0.05, "webhook_retry_longest": 0.2, "tick_seconds": 0.05}


@pytest.fixture(params=["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = make_engine(request.getfixturevalue(request.param))
    register(made)
    yield made
    made.db.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as it:
        yield it


@pytest.fixture
def api(engine: Engine, receiver: Receiver) -> Iterator[Api]:
    with serving(engine, egress=(receiver.url,)) as running:
        yield running


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.keys['submit']}"}, timeout=30) as made:
        yield made


Begin = Callable[..., tuple[Reconciler, Meters]]


@pytest.fixture
def scheduler(engine: Engine, receiver: Receiver) -> Iterator[Begin]:
    """A scheduler's body over ``engine``, as quick as given."""
    begun = []

    def begin(**settings: Any) -> tuple[Reconciler, Meters]:
        url = engine.db.url.render_as_string(False)
        made = Settings.load(env_file=None, database_url=url, **{"egress": (receiver.url,), **QUICK, **settings})
        meters = Meters()
        reconciler = bootstrap.build_reconciler(made, engine, meters)
        reconciler.start()
        begun.append(reconciler)
        return reconciler, meters

    yield begin
    for reconciler in begun:
        reconciler.close()


def submit(http: httpx.Client, webhook: object, **body: object) -> dict[str, Any]:
    answer = http.post("/v1/jobs", json={"workflow": "two-steps", "webhook": webhook, **body})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def shown(http: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/jobs/{job}").json()["webhook"]
    return found


def until(http: httpx.Client, job: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The job's webhook once it is as wanted; it changes a moment after the receiver has answered."""
    clock = Clock()
    end = clock.monotonic() + 30
    while not condition(hook := shown(http, job)):
        assert clock.monotonic() < end, hook
        clock.sleep(0.02)
    return hook


def done(hook: dict[str, Any]) -> bool:
    return bool(hook["state"] == "done")


def outcomes(meters: Meters) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for family in meters.registry.collect()
        for sample in family.samples
        if sample.name == "orchestrator_webhook_deliveries_total"
    }


def counted(meters: Meters, wanted: dict[str, float]) -> None:
    """Tries are counted a moment after they are written."""
    clock = Clock()
    end = clock.monotonic() + 10
    while outcomes(meters) != wanted:
        assert clock.monotonic() < end, outcomes(meters)
        clock.sleep(0.02)


def test_from_submit_to_a_signed_post(engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin) -> None:
    """A16: the caller is told; nobody polls."""
    _, meters = scheduler()
    job = submit(http, f"{receiver.url}/told?token=t0ken")
    secret = job["webhook"]["secret"]
    finish(engine, job["id"], {"x": 1})
    (got,) = receiver.wait(1)
    assert got.path == "/told?token=t0ken"
    body = Signer(secret).verify(got.body, got.headers)
    assert (body["type"], body["data"]["job"]) == ("job.succeeded", job["id"])
    with pytest.raises(WebhookVerificationError):
        Signer(SECRET).verify(got.body, got.headers)
    hook = until(http, job["id"], done)
    assert hook["url"] == f"{receiver.url}/told"
    assert secret not in http.get(f"/v1/jobs/{job['id']}").text
    counted(meters, {"delivered": 1})


def test_events_come_in_order_through_failures(
    engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin
) -> None:
    statuses = [500, 429, 302, 500]

    def answer(_: Got) -> Answer:
        if statuses:
            return Answer(statuses.pop(), {"Location": f"{receiver.url}/elsewhere", "Retry-After": "0"}, b"x" * 100_000)
        return Answer(200, {"Set-Cookie": "a=b"}, b"y" * 100_000)

    receiver.answer = answer
    _, meters = scheduler()
    webhook = {"url": receiver.url, "events": ["job.submitted", "step.succeeded", "job.succeeded"], "secret": SECRET}
    job = submit(http, webhook)
    assert "secret" not in json.dumps(job)
    finish(engine, job["id"], 1)
    until(http, job["id"], done)
    numbers = [got.event["data"]["number"] for got in receiver.got]
    assert numbers == [1, 1, 1, 1, 1, 2, 3, 4]
    ids = [got.headers["webhook-id"] for got in receiver.got]
    assert len(set(ids[:5])) == 1
    assert len(set(ids)) == 4
    assert {got.path for got in receiver.got} == {"/"}  # no redirect was followed
    assert not any("Cookie" in got.headers for got in receiver.got)
    for got in receiver.got:
        Signer(SECRET).verify(got.body, got.headers)
    counted(meters, {"delivered": 4, "failed": 4})


def test_gone_stops_it_until_it_is_resumed(
    engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin
) -> None:
    receiver.answer = lambda _: Answer(410)
    _, meters = scheduler()
    job = submit(http, receiver.url)["id"]
    finish(engine, job)
    hook = until(http, job, lambda hook: bool(hook["state"] == "stopped"))
    assert "410" in hook["error"]
    receiver.answer = lambda _: Answer()
    answer = http.post(f"/v1/jobs/{job}/webhook/resume", json={"note": "mended"})
    assert answer.status_code == 202
    until(http, job, done)
    assert [got.event["data"]["number"] for got in receiver.got] == [4, 4]
    counted(meters, {"delivered": 1, "stopped": 1})


def test_a_receiver_that_fails_too_long_is_stopped(
    engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin
) -> None:
    receiver.answer = lambda _: Answer(503)
    scheduler(webhook_give_up=0.3)
    job = submit(http, receiver.url)["id"]
    finish(engine, job)
    hook = until(http, job, lambda hook: bool(hook["state"] == "stopped"))
    assert hook["failures"] > 1
    assert "503" in hook["error"]


def test_a_slow_receiver_holds_up_nobody(
    engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin
) -> None:
    """Its tries end by the clock, whatever it does; meanwhile others are told."""
    release = threading.Event()

    def late(_: Got) -> Answer:
        release.wait(30)
        return Answer()

    receiver.answer = late
    with receiving() as quick:
        scheduler(egress=(receiver.url, quick.url), webhook_timeout=0.5, webhook_host_concurrency=2)
        slow = [submit_to(engine, receiver.url) for _ in range(6)]
        fast = [submit_to(engine, quick.url) for _ in range(6)]
        for job in (*slow, *fast):
            finish(engine, job)
        assert len(quick.wait(6)) == 6
        assert not release.is_set()
        hook = until(http, slow[0], lambda hook: hook["failures"] > 0)
        assert "did not answer within 0.5 s" in hook["error"]
        release.set()
        for job in slow:
            until(http, job, done)


def submit_to(engine: Engine, url: str) -> str:
    return use_case(engine, Submission("two-steps", webhook=Webhook.read(url))).job.id


def test_where_nobody_listens_it_says_so_without_secrets(
    engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scheduler(egress=("http://127.0.0.1:9/", receiver.url))
    job = submit_to(engine, "http://127.0.0.1:9/?token=t0ken")
    finish(engine, job)
    hook = until(http, job, lambda hook: hook["failures"] > 0)
    assert "ConnectError" in hook["error"]
    assert "t0ken" not in caplog.text + json.dumps(hook)


def test_what_egress_does_not_allow_is_refused_before_anything_is_written(api: Api, http: httpx.Client) -> None:
    before = api.engine.db.run(lambda s: s.value("SELECT count(*) FROM jobs"), readonly=True)
    for webhook in ("http://127.0.0.1:1/", {"url": "http://169.254.169.254/latest"}, "https://user:pw@example.com/"):
        one = http.post("/v1/jobs", json={"workflow": "two-steps", "webhook": webhook})
        many = http.post("/v1/jobs/batch", json={"jobs": [{"workflow": "two-steps", "webhook": webhook}]})
        for answer in (one, many):
            assert (answer.status_code, answer.json()["code"]) == (422, "refused_by_policy")
            assert answer.json()["problems"][0]["path"] == "webhook.url"
            assert "ORCHESTRATOR_EGRESS" in answer.json()["detail"]
            assert "pw" not in answer.text
    assert api.engine.db.run(lambda s: s.value("SELECT count(*) FROM jobs"), readonly=True) == before


@pytest.mark.parametrize(
    "webhook",
    [
        {},
        7,
        {"url": "x", "events": ["job.exploded"]},
        {"url": "x", "events": []},
        {"url": "x", "secret": "topsecret"},
        "",
    ],
)
def test_what_cannot_be_read_is_invalid(http: httpx.Client, webhook: object) -> None:
    answer = http.post("/v1/jobs", json={"workflow": "two-steps", "webhook": webhook})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert "topsecret" not in answer.text


def test_a_batch_answers_each_secret(http: httpx.Client, receiver: Receiver) -> None:
    jobs = [{"workflow": "two-steps", "webhook": receiver.url}, {"workflow": "two-steps"}]
    first, second = http.post("/v1/jobs/batch", json={"jobs": jobs}).json()["jobs"]
    assert first["webhook"]["secret"].startswith("whsec_")
    assert "webhook" not in second


def test_resuming_what_is_not_there_is_404(http: httpx.Client) -> None:
    job = http.post("/v1/jobs", json={"workflow": "two-steps"}).json()["id"]
    assert http.post(f"/v1/jobs/{job}/webhook/resume").status_code == 404
    assert http.post("/v1/jobs/nope/webhook/resume").status_code == 404


def test_sse_pages_and_webhooks_tell_the_same_of_an_event(
    engine: Engine, http: httpx.Client, receiver: Receiver, scheduler: Begin
) -> None:
    """B10: one versioned form of events, which a schema checks, by stream and by webhook."""
    scheduler()
    types = ["job.submitted", "step.succeeded", "step.failed", "job.failed", "dead_letter.created"]
    job = submit(http, {"url": receiver.url, "events": types})["id"]
    do(engine, job, "first", {"x": 1})
    do(engine, job, "second", fail="no")
    until(http, job, done)
    pushed = [got.event for got in receiver.got]
    streamed = [
        json.loads(frame["data"])
        for frame in sse_frames(http.get(f"/v1/jobs/{job}/events", headers={"Accept": sse.MEDIA_TYPE}).text)
    ]
    paged = http.get(f"/v1/jobs/{job}/events").json()["events"]
    assert streamed == paged == queries.list_events(engine, JobId(job))[0]
    assert [body["data"] for body in pushed] == [event for event in streamed if event["type"] in types]
    event, message = compile_schema(event_schema(), "event"), compile_schema(message_schema(), "message")
    assert [event.problems(found) for found in streamed] == [[] for _ in streamed]
    assert [message.problems(found) for found in pushed] == [[] for _ in pushed]
    assert {body["type"] for body in pushed} == {
        "job.submitted",
        "step.succeeded",
        "step.failed",
        "job.failed",
        "dead_letter.created",
    }


def test_the_published_description_holds_messages_and_events(http: httpx.Client) -> None:
    found = http.get("/openapi.json").json()
    assert "event" in found["webhooks"]
    assert "WebhookMessage" in found["components"]["schemas"]
    assert found["components"]["schemas"]["EventView"]["allOf"]
