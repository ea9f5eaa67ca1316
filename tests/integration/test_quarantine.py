"""The quarantine on the desk, and RabbitMQ's delivery limit as one of the ways into it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kombu import Connection
from typer.testing import CliRunner

from orchestrator.canvas.app import DELIVERY_LIMIT, make_app
from orchestrator.canvas.dead_messages import LOOK_SECONDS, DeadMessages
from orchestrator.canvas.messages import DEAD_QUEUE, step_message
from orchestrator.canvas.publisher import ConfirmedLine
from orchestrator.cli.app import app
from orchestrator.clock import Clock
from orchestrator.domain.errors import NotFound, Unavailable
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from orchestrator.engine import audit, quarantine, signs
from orchestrator.engine.context import Engine
from tests.support.api import Api, make_engine, serving

STEP = step_message(StepRef(JobId("job"), StepPath("a"), 1, QueueName("default")))
ODD = b"\xff\xfe\x00"


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = make_engine(str(request.getfixturevalue(request.param)))
    yield made
    made.feed.close()
    made.db.close()


def fill(engine: Engine, count: int = 3) -> list[str]:
    """The ids, newest first."""
    for n in range(count):
        signs.quarantine(engine, "default", f"reason {n}", f"message {n}".encode())
    return [str(row["id"]) for row in quarantine.listing(engine, limit=200)[0]]


def test_messages_are_listed_shown_and_discarded_once(engine: Engine) -> None:
    ids = fill(engine)
    page, following = quarantine.listing(engine, limit=2)
    rest, end = quarantine.listing(engine, cursor=following, limit=2)
    assert ([row["id"] for row in page + rest], following, end) == (sorted(ids, reverse=True), ids[1], None)
    assert {row["reason"] for row in page + rest} == {"reason 0", "reason 1", "reason 2"}
    assert page[0]["size"] == len("message 2")
    assert "raw" not in page[0]
    signs.quarantine(engine, "gpu", "odd", ODD)
    odd = next(row["id"] for row in quarantine.listing(engine)[0] if row["reason"] == "odd")
    found = quarantine.show(engine, odd)
    assert (base64.b64decode(found["raw"]), found["text"], found["size"]) == (ODD, None, 3)
    assert quarantine.show(engine, ids[0])["text"] == f"message {page[0]['reason'][-1]}"
    quarantine.discard(engine, odd, by="ann", note="a stray")
    for ask in (lambda: quarantine.show(engine, odd), lambda: quarantine.discard(engine, odd, by="ann")):
        with pytest.raises(NotFound, match="in quarantine"):
            ask()
    (entry,) = audit.trail(engine, tenant=None, subject=odd)[0]
    assert (entry["what"], entry["who"], entry["why"]) == ("quarantine.discarded", "ann", "a stray")
    assert (entry["data"]["queue"], entry["data"]["reason"], entry["data"]["size"]) == ("gpu", "odd", 3)


def test_the_desk_is_for_operators(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with serving(engine) as api:
        ids = fill(engine)
        with client(api, "submit") as http:
            for answer in (
                http.get("/v1/quarantine"),
                http.get(f"/v1/quarantine/{ids[0]}"),
                http.post(f"/v1/quarantine/{ids[0]}/discard"),
            ):
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        with client(api, "operate") as http:
            page = http.get("/v1/quarantine", params={"limit": 2}).json()
            assert [row["id"] for row in page["messages"]] == ids[:2]
            rest = http.get("/v1/quarantine", params={"cursor": page["next"]}).json()
            assert ([row["id"] for row in rest["messages"]], rest["next"]) == (ids[2:], None)
            shown = http.get(f"/v1/quarantine/{ids[0]}").json()
            text = f"message {shown['reason'][-1]}"
            assert (base64.b64decode(shown["raw"]), shown["text"]) == (text.encode(), text)
            assert http.post(f"/v1/quarantine/{ids[0]}/discard", json={"note": "x"}).status_code == 200
            assert http.post(f"/v1/quarantine/{ids[0]}/discard").status_code == 404
    engine.db.close()


def test_the_same_from_a_shell(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = make_engine(sqlite_url)
    first = fill(engine, 1)[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", sqlite_url)
    shell = CliRunner()
    listed = json.loads(shell.invoke(app, ["quarantine", "list", "--json"]).stdout)
    assert [(row["id"], row["reason"], row["size"]) for row in listed] == [(first, "reason 0", 9)]
    assert "message 0" in shell.invoke(app, ["quarantine", "show", first]).stdout
    assert shell.invoke(app, ["quarantine", "discard", first, "--note", "a stray"]).exit_code == 0
    assert json.loads(shell.invoke(app, ["quarantine", "list", "--json"]).stdout) == []
    assert isinstance(shell.invoke(app, ["quarantine", "show", first]).exception, NotFound)
    assert audit.trail(engine, tenant=None, subject=first)[0][0]["why"] == "a stray"
    engine.db.close()


def client(api: Api, role: str) -> httpx.Client:
    return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.keys[role]}"}, timeout=10)


# ---------------------------------------------------------------------------------------------------------------
# RabbitMQ


def deliver_and_die(url: str, times: int) -> int:
    """Takes the message and lets the connection go without an answer; how often there was one."""
    count = 0
    for _ in range(times):
        with Connection(url) as connection:
            count += connection.default_channel.basic_get("default") is not None
    return count


def in_queue(url: str, queue: str) -> int:
    with Connection(url) as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def wait_for_death(url: str) -> None:
    clock = Clock()
    until = clock.monotonic() + 20
    while not in_queue(url, DEAD_QUEUE):
        assert clock.monotonic() < until, "the message never reached the dead queue"
        deliver_and_die(url, 1)
        clock.sleep(0.05)


def test_what_reaches_the_delivery_limit_is_in_quarantine(rabbitmq_url: str, sqlite_url: str) -> None:
    """A message that kills each process before its claim is neither dropped nor delivered for ever (P7)."""
    engine, celery = make_engine(sqlite_url), make_app(rabbitmq_url)
    line = ConfirmedLine(celery)
    line.connect()
    line.send([STEP])
    line.close()
    dead = DeadMessages(celery, lambda queue, reason, raw: signs.quarantine(engine, queue, reason, raw), Clock())
    assert dead.drain() == 0, "it may still be delivered"
    assert deliver_and_die(rabbitmq_url, DELIVERY_LIMIT) == DELIVERY_LIMIT
    wait_for_death(rabbitmq_url)
    assert in_queue(rabbitmq_url, "default") == 0
    again = DeadMessages(celery, lambda queue, reason, raw: signs.quarantine(engine, queue, reason, raw), Clock())
    assert again.drain() == 1
    ((row,), _) = quarantine.listing(engine)
    assert (row["queue"], row["reason"]) == ("default", "delivery_limit")
    assert base64.b64decode(quarantine.show(engine, row["id"])["raw"]) == STEP.body
    assert in_queue(rabbitmq_url, DEAD_QUEUE) == 0
    dead.close()
    again.close()
    engine.db.close()


def test_a_dead_message_that_cannot_be_kept_stays(rabbitmq_url: str) -> None:
    """The database is away; and while the broker is away nothing is raised."""
    celery, kept = make_app(rabbitmq_url), list[bytes]()

    def unavailable(_queue: str, _reason: str, _raw: bytes) -> None:
        raise Unavailable("the database does not answer.")

    line = ConfirmedLine(celery)
    line.connect()
    with Connection(rabbitmq_url) as connection:
        connection.Producer().publish(b"odd", exchange="", routing_key=DEAD_QUEUE)
    line.close()
    failing = DeadMessages(celery, unavailable, Clock())
    with pytest.raises(Unavailable):
        failing.drain()
    failing.close()
    clock = Clock()
    until = clock.monotonic() + 2 * LOOK_SECONDS
    while not in_queue(rabbitmq_url, DEAD_QUEUE):
        assert clock.monotonic() < until
    works = DeadMessages(celery, lambda _queue, _reason, raw: kept.append(raw), Clock())
    assert (works.drain(), kept) == (1, [b"odd"])
    works.close()
    nobody = DeadMessages(make_app("amqp://127.0.0.1:1//"), unavailable, Clock())
    assert nobody.drain() == 0
