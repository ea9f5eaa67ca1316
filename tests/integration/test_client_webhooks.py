"""Webhooks through both clients, and in the caller's own transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy

from orchestrator.client import AsyncClient, Client, Job, NewJob
from orchestrator.domain.errors import DefinitionError, InvalidInput, NotFound
from orchestrator.engine.context import Engine
from orchestrator.ports import Reply
from orchestrator.testing import ListSender
from tests.support.api import Api, finish, make_engine, register, serving
from tests.support.told import SECRET, courier, seen

URL = "https://told.example.com/hook"


@pytest.fixture(params=["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = make_engine(request.getfixturevalue(request.param))
    register(made)
    yield made
    made.db.close()


@pytest.fixture
def api(engine: Engine) -> Iterator[Api]:
    with serving(engine, egress=("https://told.example.com/",)) as running:
        yield running


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api_key=api.keys["submit"]) as made:
        yield made


def deliver(engine: Engine, sender: ListSender) -> None:
    asyncio.run(courier(engine, sender).deliver())


def secret_of(job: Job) -> str | None:
    return (job.webhook or {}).get("secret")


def test_the_secret_comes_once_and_never_in_what_is_printed(client: Client, engine: Engine) -> None:
    job = client.submit("two-steps", key="k", webhook=URL)
    secret = secret_of(job)
    assert secret is not None
    assert secret not in repr(job)
    assert secret_of(client.submit("two-steps", key="k", webhook=URL)) is None
    shown = client.job(job.id).webhook
    assert shown is not None
    assert (shown["url"], shown["state"], "secret" in shown) == (URL, "active", False)
    finish(engine, job.id)
    deliver(engine, ListSender())
    assert (client.job(job.id).webhook or {})["state"] == "done"


def test_a_batch_of_some_with_and_some_without(client: Client) -> None:
    given = {"url": URL, "events": ["step.failed"], "secret": SECRET}
    first, second, third = client.submit_batch(
        [NewJob("two-steps", webhook=URL), NewJob("two-steps", webhook=given), NewJob("two-steps")]
    )
    assert secret_of(first)
    assert second.webhook is None
    assert (client.job(second.id).webhook or {})["events"] == ["step.failed"]
    assert client.job(third.id).webhook is None
    assert SECRET not in repr(NewJob("two-steps", webhook=given))


def test_what_is_refused_is_said(client: Client) -> None:
    with pytest.raises(DefinitionError) as refused:
        client.submit("two-steps", webhook="https://elsewhere.example.com/")
    assert refused.value.code == "refused_by_policy"
    with pytest.raises(InvalidInput):
        client.submit("two-steps", webhook={"url": URL, "events": ["job.exploded"]})


def test_a_stopped_one_is_resumed_by_the_async_client(api: Api, engine: Engine) -> None:
    async def run() -> None:
        async with AsyncClient(api.url, api_key=api.keys["submit"]) as client:
            job = await client.submit("two-steps", webhook=URL)
            await asyncio.to_thread(finish, engine, job.id)
            await asyncio.to_thread(deliver, engine, ListSender(answers=lambda _: Reply(410)))
            assert ((await client.job(job.id)).webhook or {})["state"] == "stopped"
            resumed = await client.resume_webhook(job.id)
            assert (resumed.webhook or {})["state"] == "active"
            sender = ListSender()
            await asyncio.to_thread(deliver, engine, sender)
            assert seen(sender) == [(job.id, 4)]
            with pytest.raises(NotFound):
                await client.resume_webhook((await client.submit("two-steps")).id)

    asyncio.run(run())


@pytest.mark.parametrize("commits", [True, False])
def test_in_the_callers_own_transaction(engine: Engine, commits: bool) -> None:
    """The webhook exists exactly if the job does; what may be called is for the sender to say."""
    made = sqlalchemy.create_engine(engine.db.url, poolclass=sqlalchemy.pool.NullPool)
    with Client() as client, made.connect() as connection:
        with pytest.raises(DefinitionError):
            client.submit("two-steps", connection=connection, webhook="ftp://told.example.com/")
        job = client.submit("two-steps", connection=connection, webhook=URL)
        assert secret_of(job)
        if commits:
            connection.commit()
    rows = engine.db.run(lambda session: session.rows("SELECT job_id FROM webhooks"), readonly=True)
    assert rows == ([{"job_id": job.id}] if commits else [])
