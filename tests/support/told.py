"""Jobs with a webhook, and a courier whose receiver is a list."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from orchestrator.domain.ids import JobId
from orchestrator.domain.webhook import Patience, Webhook
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import queries
from orchestrator.engine.context import Engine
from orchestrator.engine.deliver import Courier, Manners
from orchestrator.engine.policy import Policy
from orchestrator.engine.submit import Accepted, Submission, submit
from orchestrator.testing import ListSender
from tests.support.bench import Bench

URL = "https://example.com/told?token=t0ken"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVERY = Patience(first=60.0)
TWO: dict[str, Any] = {
    "name": "two",
    "agents": {"echo": {"kind": "scripted"}},
    "steps": [{"id": "a", "agent": "echo"}, {"id": "b", "agent": "echo"}],
}
FAILS = {**TWO, "agents": {"echo": {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}]}}}


def accept(
    bench: Bench, flow: dict[str, Any] = TWO, *, url: str = URL, key: str | None = None, **hook: Any
) -> Accepted:
    webhook = Webhook.read({"url": url, **hook})
    return submit(bench.engine, Submission(Workflow.model_validate(flow), 1, key=key, webhook=webhook))


def courier(engine: Engine, sender: ListSender, told: list[str] | None = None, **manners: Any) -> Courier:
    how = Manners(**{"policy": Policy(egress=None), "patience": EVERY, **manners})
    return Courier(engine, lambda: sender, how, told.append if told is not None else lambda _: None)


def deliver(bench: Bench, sender: ListSender, told: list[str] | None = None, **manners: Any) -> None:
    asyncio.run(courier(bench.engine, sender, told, **manners).deliver())


def bodies(sender: ListSender) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in sender.sent]


def seen(sender: ListSender) -> list[tuple[str, int]]:
    return [(body["data"]["job"], body["data"]["number"]) for body in bodies(sender)]


def hook(bench: Bench, job: str) -> dict[str, Any]:
    found = queries.show_job(bench.engine, JobId(job))["webhook"]
    assert isinstance(found, dict)
    return found


def make_due(bench: Bench) -> None:
    """As if its time had come: a pause is over, a sender that died is given up for lost."""
    bench.db.run(lambda s: s.execute("UPDATE webhooks SET due_at = {now} - 1 WHERE due_at IS NOT NULL"))
