"""Both clients against a real API: every call, the same errors as inside, retries only where they are safe."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx
import pytest

from orchestrator.api.sse import HEARTBEAT
from orchestrator.client import AsyncClient, Client, NewJob, faults
from orchestrator.client import stream as sse_reader
from orchestrator.client.faults import TRIES, error_of
from orchestrator.domain.errors import (
    ConfigError,
    Conflict,
    DefinitionError,
    Forbidden,
    Gone,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
    UsageError,
)
from orchestrator.domain.outcome import FailureClass
from orchestrator.domain.states import JobState
from orchestrator.engine.context import Engine
from tests.support.api import TWO_STEPS, Api, do, finish, make_engine, register, serving
from tests.support.fault_proxy import FaultProxy


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    made = make_engine(sqlite_url)
    register(made)
    yield made
    made.db.close()


@pytest.fixture
def api(engine: Engine) -> Iterator[Api]:
    with serving(engine) as running:
        yield running


class Loop:
    """An ``AsyncClient`` with the face of ``Client``: every call runs on a loop in a thread of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = self._run(self._make(url, options))

    async def _make(self, url: str, options: dict[str, Any]) -> AsyncClient:
        return await AsyncClient(url, **options).__aenter__()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            return self._run(made) if inspect.iscoroutine(made) else self._items(made)

        return call

    def _items(self, stream: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._run(anext(stream))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=[Client, Loop], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def client(connect: Callable[..., Any], api: Api) -> Iterator[Any]:
    with connect(api.url, api_key=api.keys["admin"]) as made:
        yield made


def test_the_two_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        public = {name: call for name, call in vars(kind).items() if callable(call) and not name.startswith("_")}
        return {name: list(inspect.signature(call).parameters) for name, call in public.items()}

    assert calls(Client) == calls(AsyncClient)


# -- what is answered


def test_a_job_from_submit_to_its_output(client: Any, engine: Engine) -> None:
    job = client.submit("two-steps", {"n": 1}, key="k", priority=3, tags={"team": "red"}, deadline=60)
    assert (job.state, job.priority, job.tags, job.ended) == (JobState.QUEUED, 3, {"team": "red"}, False)
    assert (job.deadline_at or 0) - (job.created_at or 0) == pytest.approx(60)
    assert client.submit("two-steps", {"n": 1}, key="k", priority=3, tags={"team": "red"}, deadline=60).id == job.id
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, job.id, 30)
        finish(engine, job.id, {"x": 1})
        done = waiting.result()
    assert (done.state, done.input, done.output, done.ended) == (JobState.SUCCEEDED, {"n": 1}, {"x": 1}, True)
    assert [step["path"] for step in client.steps(job.id, page=1)] == ["first", "second"]
    assert [attempt["outcome"] for attempt in client.attempts(job.id)] == ["succeeded", "succeeded"]
    assert [event.type for event in client.events(job.id)][-1] == "job.succeeded"
    assert [event.number for event in client.events(job.id, after=2)] == [3, 4]


def test_submit_may_wait_and_gives_up_waiting_with_the_job_in_hand(client: Any) -> None:
    job = client.submit("two-steps", wait=0.5)
    assert job.state is JobState.QUEUED
    with pytest.raises(TimeoutError, match=job.id):
        client.wait(job.id, timeout=0.1)


def test_lists_go_through_all_pages(client: Any) -> None:
    made = client.submit_batch([NewJob("two-steps", {"n": n}, tags={"batch": "yes"}) for n in range(5)])
    found = list(client.jobs(tag=("batch", "yes"), page=2))
    assert [job.id for job in found] == sorted((job.id for job in made), reverse=True)
    assert list(client.jobs(state=["failed", "succeeded"])) == []
    assert list(client.jobs(workflow="two-steps", created_before=1.0)) == []
    assert len(list(client.jobs(created_after=made[0].created_at - 0.001))) == 5


def test_the_desk(client: Any, engine: Engine) -> None:
    job = client.submit("two-steps")
    do(engine, job.id, "first", fail="no luck")
    failed = client.job(job.id)
    assert (failed.failure.kind, failed.failure.message) == (FailureClass.PERMANENT, "no luck")
    [letter] = client.dead_letters(workflow="two-steps")
    assert client.dead_letter(letter["id"])["attempts"][0]["attempt"] == 1
    assert client.replay(letter["id"], note="again").state is JobState.RUNNING
    with pytest.raises(Conflict, match="replayed"):
        client.replay(letter["id"])
    do(engine, job.id, "first", fail="no luck")
    [second] = client.dead_letters(job=job.id)
    assert client.discard(second["id"])["state"] == "discarded"
    assert list(client.dead_letters()) == []
    assert len(list(client.dead_letters(state="all", page=1))) == 2


def test_workflows_queues_and_workers(client: Any) -> None:
    version = client.register("pair", {**TWO_STEPS, "name": "pair"})
    yaml = "name: pair\nagents: {echo: {kind: scripted}}\nsteps: [{id: one, agent: echo}]\n"
    newer = client.register("pair", yaml)
    assert client.workflow("pair")["version"] == newer
    assert client.workflow("pair", version)["definition"]["name"] == "pair"
    assert {found["name"] for found in client.workflows()} == {"pair", "two-steps"}
    client.submit(f"pair@{version[:10]}")
    client.submit({**TWO_STEPS, "name": "inline"})
    assert [queue["ready"] for queue in client.queues()] == [2]
    assert client.workers() == []


# -- errors are those of the house


def test_errors_are_the_servers_own(client: Any, connect: Callable[..., Any], api: Api, engine: Engine) -> None:
    job = client.submit("two-steps", {"n": 1}, key="k")
    with pytest.raises(IdempotencyMismatch):
        client.submit("two-steps", {"n": 2}, key="k")
    for call in (
        lambda: client.job("none"),
        lambda: client.submit("none"),
        lambda: client.job(""),
        lambda: client.job("../x"),
    ):
        with pytest.raises((NotFound, InvalidInput)):
            call()
    with pytest.raises(InvalidInput, match="integer"):
        client.submit("two-steps", {"n": "one"})
    with pytest.raises(InvalidInput, match="priority"):
        client.submit("two-steps", priority=10**9)
    with pytest.raises(InvalidInput):
        client.submit("two-steps", float("nan"))
    with pytest.raises(InvalidInput, match="header"):
        client.submit("two-steps", key="schlüssel\n")
    with pytest.raises(PayloadTooLarge):
        client.submit("two-steps", "x" * 5_000_000)
    with pytest.raises(Gone):
        list(client.events(job.id, after=77))
    with pytest.raises(NotFound):
        list(client.events("none"))
    with pytest.raises(DefinitionError) as raised:
        client.submit({"name": "x", "steps": [{"id": "a", "agnt": "b"}]})
    assert raised.value.problems[0].path.startswith("steps[0]")
    reaching = {**TWO_STEPS, "agents": {"echo": {"kind": "python", "target": "os:system"}}}
    with pytest.raises(DefinitionError) as raised:
        client.submit(reaching)
    assert raised.value.code == "refused_by_policy"
    finish(engine, job.id)
    with pytest.raises(Conflict, match="succeeded"):
        client.cancel(job.id)
    with connect(api.url, api_key=api.keys["submit"]) as weak, pytest.raises(Forbidden):
        weak.queues()
    with connect(api.url, api_key="wrong") as stranger, pytest.raises(Unauthorized):
        list(stranger.jobs())


def test_an_admin_client_speaks_for_a_tenant(connect: Callable[..., Any], api: Api) -> None:
    with connect(api.url, api_key=api.keys["admin"], tenant="acme") as acme:
        job = acme.submit("two-steps")
        assert (job.tenant, acme.job(job.id).id) == ("acme", job.id)
        assert acme.cancel(job.id).state is JobState.CANCELLED
        assert [event.type for event in acme.events(job.id)][-1] == "job.cancelled"


def test_nobody_there(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_DELAY", 0.01)
    monkeypatch.setattr(sse_reader, "MAX_DELAY", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with connect(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port} does not answer"):
            client.job("x")
        with pytest.raises(Unavailable, match="does not answer"):
            list(client.events("x"))


def test_a_client_without_an_address_says_so() -> None:
    with Client() as client, pytest.raises(ConfigError, match="no url"):
        client.submit("two-steps")


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (502, b"<html>bad gateway</html>", Unavailable, "unavailable"),
        (200, b"", None, None),
        (418, b'{"code": "teapot", "detail": "short and stout"}', UsageError, "teapot"),
        (503, b'{"code": "maintenance", "detail": "soon"}', Unavailable, "maintenance"),
        (500, b'{"code": "internal", "detail": "oops"}', Exception, "internal"),
        (409, b'{"code": "submit_in_progress", "detail": "wait"}', Conflict, "submit_in_progress"),
    ],
)
def test_an_unknown_answer_becomes_the_nearest_error(status: int, body: bytes, kind: Any, code: Any) -> None:
    error = error_of(status, {"retry-after": "7"}, body)
    if kind is not None:
        assert isinstance(error, kind)
        assert error.code == code
        assert error.context["retry_after"] == 7


# -- trying again


class Flaky:
    """An httpx transport that fails ``times`` times before it lets a request through."""

    def __init__(self, fault: Callable[[httpx.Request], httpx.Response], times: int) -> None:
        self.seen: list[str] = []
        self._fault = fault
        self._times = times
        self.inner = httpx.HTTPTransport()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(f"{request.method} {request.url.path}")
        if len(self.seen) <= self._times:
            return self._fault(request)
        request.read()
        return self.inner.handle_request(request)


def away(_: httpx.Request) -> httpx.Response:
    body = b'{"code": "unavailable", "detail": "the database does not answer."}'
    return httpx.Response(503, content=body, headers={"Retry-After": "0"})


def cut(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


def unsent(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize("fault", [away, cut, unsent])
def test_what_is_safe_is_tried_again(api: Api, fault: Callable[[httpx.Request], httpx.Response]) -> None:
    for call in (
        lambda client: client.workflows(),
        lambda client: client.submit("two-steps", key="once"),
        lambda client: client.submit_batch([NewJob("two-steps", key="twice")]),
    ):
        flaky = Flaky(fault, 2)
        with Client(api.url, api_key=api.keys["admin"], transport=httpx.MockTransport(flaky)) as client:
            call(client)
        assert len(flaky.seen) == 3
        flaky.inner.close()


@pytest.mark.parametrize("fault", [away, cut])
def test_a_submit_without_a_key_is_sent_once(api: Api, fault: Callable[[httpx.Request], httpx.Response]) -> None:
    for call in (
        lambda client: client.submit("two-steps"),
        lambda client: client.submit_batch([NewJob("two-steps", key="a"), NewJob("two-steps")]),
        lambda client: client.replay("x"),
    ):
        flaky = Flaky(fault, 99)
        transport = httpx.MockTransport(flaky)
        with Client(api.url, api_key=api.keys["admin"], transport=transport) as client, pytest.raises(Unavailable):
            call(client)
        assert len(flaky.seen) == 1


def test_what_never_left_this_machine_may_always_go_again(api: Api) -> None:
    flaky = Flaky(unsent, 1)
    with Client(api.url, api_key=api.keys["admin"], transport=httpx.MockTransport(flaky)) as client:
        client.submit("two-steps")
    assert len(flaky.seen) == 2
    flaky.inner.close()


def test_trying_ends(api: Api) -> None:
    flaky = Flaky(away, 99)
    with Client(api.url, transport=httpx.MockTransport(flaky)) as client, pytest.raises(Unavailable):
        client.workflows()
    assert len(flaky.seen) == TRIES


def test_a_server_that_asks_for_minutes_is_not_waited_for(api: Api) -> None:
    flaky = Flaky(lambda _: httpx.Response(503, headers={"Retry-After": "600"}), 99)
    with Client(api.url, transport=httpx.MockTransport(flaky)) as client, pytest.raises(Unavailable):
        client.workflows()
    assert len(flaky.seen) == 1


# -- streams over a line that is cut


def test_events_survive_cuts_of_the_line(connect: Callable[..., Any], api: Api, engine: Engine) -> None:
    with FaultProxy(api.server.port) as proxy, through(connect, proxy, api) as client:
        job = client.submit("two-steps")
        events = client.events(job.id)
        seen = [next(events)]
        proxy.cut()
        do(engine, job.id, "first")
        seen.append(next(events))
        proxy.cut()
        do(engine, job.id, "second")
        seen += list(events)
    assert [event.number for event in seen] == [1, 2, 3, 4]


def test_a_silent_line_counts_as_cut(api: Api, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sse_reader.SILENCE > HEARTBEAT * 2
    monkeypatch.setattr("orchestrator.client.blocking.SILENCE", 0.5)
    with FaultProxy(api.server.port) as proxy, through(Client, proxy, api) as client:
        job = client.submit("two-steps")
        events = client.events(job.id)
        assert next(events).number == 1
        proxy.black_hole()
        finish(engine, job.id)
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(lambda: [event.number for event in events])
            before = proxy.accepted
            while proxy.accepted == before:  # it has given up the silent line and dialled again
                engine.clock.sleep(0.01)
            proxy.resume()
            assert rest.result(timeout=30) == [2, 3, 4]


def through(connect: Callable[..., Any], proxy: FaultProxy, api: Api) -> Any:
    return connect(f"http://127.0.0.1:{proxy.port}", api_key=api.keys["submit"])
