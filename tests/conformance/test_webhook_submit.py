"""A job's webhook where the job is made: secrets, addresses, idempotency keys; and jobs that have none."""

from __future__ import annotations

import json

import pytest
from standardwebhooks import Webhook as Signer

from orchestrator.domain.errors import IdempotencyMismatch, NotFound
from orchestrator.domain.ids import JobId
from orchestrator.domain.webhook import Webhook
from orchestrator.engine import queries, webhooks
from orchestrator.engine.policy import RefusedByPolicy
from orchestrator.testing import ListSender
from tests.support.bench import Bench
from tests.support.listening import listening
from tests.support.told import TWO, URL, accept, deliver


def test_a_job_without_a_webhook_has_no_row_and_no_view(bench: Bench) -> None:
    job = bench.submit(TWO, 1)
    bench.drive()
    assert "webhook" not in queries.show_job(bench.engine, job)
    with pytest.raises(NotFound, match="has no webhook"):
        webhooks.resume(bench.engine, job, by="me")
    with pytest.raises(NotFound):
        webhooks.resume(bench.engine, JobId("nope"), by="me")


def test_a_secret_is_made_where_none_is_given_and_told_once(bench: Bench) -> None:
    first, again = accept(bench, key="k"), accept(bench, key="k")
    assert first.job.id == again.job.id
    assert again.secret is None
    assert first.secret is not None
    assert queries.accepted_view(first)["webhook"] == {"secret": first.secret}
    assert first.secret not in json.dumps(queries.show_job(bench.engine, first.job.id))
    assert "t0ken" not in json.dumps(queries.show_job(bench.engine, first.job.id))
    bench.drive()
    sender = ListSender()
    deliver(bench, sender)
    assert Signer(first.secret).verify(sender.sent[0].body, sender.sent[0].headers)["type"] == "job.succeeded"
    assert first.secret not in repr(sender.sent)


def test_another_webhook_is_another_body_to_a_key(bench: Bench) -> None:
    accept(bench, key="k")
    with pytest.raises(IdempotencyMismatch):
        accept(bench, key="k", url="https://else.example/")


@pytest.mark.parametrize("address", ["ftp://x.example/", "https://user:pw@x.example/", "https:///x", "no url"])
def test_what_is_no_address_is_refused_before_anything_is_written(bench: Bench, address: str) -> None:
    with pytest.raises(RefusedByPolicy):
        accept(bench, url=address)
    assert bench.db.run(lambda s: s.value("SELECT count(*) FROM jobs"), readonly=True) == 0


def statements(bench: Bench, webhook: Webhook | None) -> list[str]:
    """What the database is asked from a job's submit to its end."""
    with listening() as heard:
        bench.submit(TWO, 1, webhook=webhook)
        bench.drive()
    return heard.said


def test_a_job_without_a_webhook_asks_the_database_nothing_more(bench: Bench) -> None:
    """One with a webhook costs a row at its submit, and a line of the settle that ends it."""
    without, told = ([s for s in statements(bench, hook) if "webhooks" in s] for hook in (None, Webhook.read(URL)))
    assert without == []
    inserted, owed = told
    assert inserted.startswith("INSERT INTO webhooks")
    assert "UPDATE webhooks" in owed
    assert ("w_jobs" in owed) == (bench.db.dialect.name == "postgresql")
