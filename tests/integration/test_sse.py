"""The event stream: gap-free whenever one comes and wherever one was cut, one poller for all, an end."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from orchestrator.api import sse, watch
from orchestrator.api.sse import HEARTBEAT, frame, position, wanted
from orchestrator.api.threads import Threads
from orchestrator.api.watch import Watch
from orchestrator.domain.errors import InvalidInput, NotFound, Unavailable
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import JobId
from orchestrator.engine import submit as use_case
from orchestrator.engine.context import Engine
from orchestrator.engine.submit import Submission
from orchestrator.store import history, jobs
from tests.support.api import Api, do, finish, make_engine, register, serving, sse_frames

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture(params=["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = make_engine(request.getfixturevalue(request.param))
    register(made)
    yield made
    made.db.close()


@pytest.fixture
def api(engine: Engine) -> Iterator[Api]:
    with serving(engine) as running:
        yield running


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {api.keys['submit']}"}
    with httpx.Client(base_url=api.url, headers=headers, timeout=30) as client:
        yield client


def new_job(engine: Engine) -> JobId:
    return use_case.submit(engine, Submission("two-steps")).job.id


def append(engine: Engine, job_id: JobId, count: int) -> None:
    """Lengthens a job's history as settles do: numbers under the job's lock."""

    def work(session: object) -> None:
        job = jobs.lock(session, [job_id])[job_id]  # type: ignore[arg-type]
        first = job.events + 1
        job.events += count
        made = [Event(job_id, n, EventType.STEP_OPENED, None, {}, 1, 1.0) for n in range(first, job.events + 1)]
        history.append_events(session, made)  # type: ignore[arg-type]
        jobs.write(session, [job])  # type: ignore[arg-type]

    engine.db.run(work)


def numbers(text: str) -> list[int]:
    return [int(found["id"]) for found in sse_frames(text)]


def test_a_stream_ends_after_the_last_event_of_an_ended_job(engine: Engine, http: httpx.Client) -> None:
    job = new_job(engine)
    finish(engine, job)
    answer = http.get(f"/v1/jobs/{job}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = sse_frames(answer.text)
    assert [found["event"] for found in frames] == [
        "job.submitted",
        "step.succeeded",
        "step.succeeded",
        "job.succeeded",
    ]
    pages = http.get(f"/v1/jobs/{job}/events").json()["events"]
    assert [json.loads(found["data"]) for found in frames] == pages


def test_it_goes_on_where_it_was_cut_and_tells_a_browser_to_stop(engine: Engine, http: httpx.Client) -> None:
    job = new_job(engine)
    finish(engine, job)
    path = f"/v1/jobs/{job}/events"
    assert numbers(http.get(path, headers={**STREAM, "Last-Event-ID": "2"}).text) == [3, 4]
    assert numbers(http.get(path, headers=STREAM, params={"after": 3}).text) == [4]
    assert http.get(path, headers={**STREAM, "Last-Event-ID": "4"}).status_code == 204
    assert http.get(path, headers={**STREAM, "Last-Event-ID": "5"}).status_code == 410
    assert http.get(path, headers={**STREAM, "Last-Event-ID": "x"}).status_code == 422
    assert http.get("/v1/jobs/nope/events", headers=STREAM).status_code == 404


def test_many_readers_that_come_and_go_while_it_is_written_miss_nothing(
    engine: Engine, http: httpx.Client, seed: int
) -> None:
    """B10: the versioned event stream, gap-free for every reader."""
    dice = random.Random(seed)
    job = new_job(engine)
    cuts = [[dice.randrange(0, 40) for _ in range(3)] for _ in range(6)]

    def read(mine: list[int]) -> list[int]:
        """Reads to the end, going away three times in the middle."""
        seen: list[int] = []
        while True:
            last = str(seen[-1] if seen else 0)
            with http.stream("GET", f"/v1/jobs/{job}/events", headers={**STREAM, "Last-Event-ID": last}) as answer:
                if answer.status_code == 204:
                    return seen
                left = mine.pop() if mine else None
                text = ""
                for piece in answer.iter_text():
                    text += piece
                    if left is not None and len(numbers(text)) > left:
                        break
                seen += numbers(text[: text.rfind("\n\n") + 2])

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, mine) for mine in cuts]
        for _ in range(30):
            append(engine, job, dice.randrange(1, 60))
        finish(engine, job)
        for reader in readers:
            seen = reader.result(timeout=60)
            assert seen == list(range(1, len(seen) + 1))
            assert len(seen) == len(readers[0].result())


async def _collected(follower: Watch, job: JobId, after: int = 0) -> list[int]:
    return [view["number"] async for page in follower.follow(job, after, 10.0) for view in page]


def test_a_history_longer_than_memory_is_read_in_pages(engine: Engine) -> None:
    job = new_job(engine)

    async def run() -> None:
        watching = Watch(engine, Threads(4))
        early = asyncio.create_task(_collected(watching, job))
        await asyncio.to_thread(append, engine, job, watch.RECENT * 2 + 7)
        late = asyncio.create_task(_collected(watching, job, after=3))
        await asyncio.to_thread(append, engine, job, watch.RECENT + 1)
        await asyncio.to_thread(finish, engine, job)
        total = watch.RECENT * 3 + 8 + 4
        assert await early == list(range(1, total + 1))
        assert await late == list(range(4, total + 1))
        await watching.close()

    asyncio.run(run())


def test_a_hundred_readers_cost_one_poller(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(engine)
    looks, pages = 0, 0
    changes, listed = watch._changes, watch.queries.list_events

    def counted(*args: object) -> object:
        nonlocal looks
        looks += 1
        return changes(*args)  # type: ignore[arg-type]

    def paged(*args: object, **kwargs: object) -> object:
        nonlocal pages
        pages += 1
        return listed(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "_changes", counted)
    monkeypatch.setattr(watch.queries, "list_events", paged)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        watching = Watch(engine, Threads(4))
        started = loop.time()
        readers = [asyncio.create_task(_collected(watching, job)) for _ in range(100)]
        await asyncio.sleep(0)  # they follow now
        while watching._jobs[job].newest is None:
            await asyncio.wait(readers, timeout=watch.INTERVAL)
        for _ in range(5):
            await asyncio.to_thread(append, engine, job, 3)
            await asyncio.wait(readers, timeout=watch.INTERVAL)
        await asyncio.to_thread(finish, engine, job)
        assert len({tuple(seen) for seen in await asyncio.gather(*readers)}) == 1
        await watching.close()
        return loop.time() - started

    lasted = asyncio.run(run())
    assert looks <= lasted / watch.INTERVAL + 2
    # Until the poller's first look a reader has its first page and finds nothing after it; then memory serves them all.
    assert pages <= 200


def test_nobody_watching_costs_nothing(engine: Engine) -> None:
    job = new_job(engine)

    async def run() -> None:
        watching = Watch(engine, Threads(4))
        assert await watching.ended(job, 0.01) is False
        assert watching._jobs == {}
        assert watching._poller is not None
        await asyncio.wait_for(watching._poller, 5)

    asyncio.run(run())


def test_a_silent_stream_says_that_it_lives(engine: Engine) -> None:
    job = new_job(engine)

    async def run() -> list[str]:
        watching = Watch(engine, Threads(4))
        frames = sse._frames(watching, job, 1, heartbeat=0.05)
        found = [await anext(frames) for _ in range(3)]
        await frames.aclose()  # type: ignore[attr-defined]
        await watching.close()
        return found

    assert asyncio.run(run()) == ["retry: 1000\n\n", ": alive\n\n", ": alive\n\n"]
    assert HEARTBEAT == 15.0


def test_a_database_that_is_away_for_a_while_only_delays(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(engine)
    changes, failures = watch._changes, 3

    def failing(*args: object) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("away")
        return changes(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "_changes", failing)

    async def run() -> list[int]:
        watching = Watch(engine, Threads(4))
        reader = asyncio.create_task(_collected(watching, job))
        await asyncio.to_thread(finish, engine, job)
        seen = await reader
        await watching.close()
        return seen

    assert asyncio.run(run()) == [1, 2, 3, 4]


def test_an_unknown_job_is_said_at_once(engine: Engine) -> None:
    async def run() -> None:
        with pytest.raises(NotFound):
            await _collected(Watch(engine, Threads(1)), JobId("none"))

    asyncio.run(run())


def test_stopping_the_server_ends_open_streams(engine: Engine) -> None:
    job = new_job(engine)
    with serving(engine) as api, ThreadPoolExecutor(1) as pool:
        headers = {**STREAM, "Authorization": f"Bearer {api.keys['submit']}"}
        with httpx.stream("GET", f"{api.url}/v1/jobs/{job}/events", headers=headers, timeout=30) as answer:
            pieces = answer.iter_text()
            assert next(pieces)
            started = engine.clock.monotonic()
            stopping = pool.submit(api.server.stop)
            rest = "".join(pieces)
            stopping.result(timeout=30)
    assert "job.succeeded" not in rest
    assert engine.clock.monotonic() - started < 8


def test_a_replayed_job_is_followed_into_its_next_run(engine: Engine, http: httpx.Client, api: Api) -> None:
    job = new_job(engine)
    do(engine, job, "first", fail="once")
    path = f"/v1/jobs/{job}/events"
    first = sse_frames(http.get(path, headers=STREAM).text)
    assert first[-1]["event"] in ("job.failed", "dead_letter.created")
    last = first[-1]["id"]
    [letter] = http.get("/v1/dead-letters").json()["dead_letters"]
    operator = {"Authorization": f"Bearer {api.keys['operate']}"}
    assert http.post(f"/v1/dead-letters/{letter['id']}/replay", headers=operator).status_code == 202
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(http.get, path, headers={**STREAM, "Last-Event-ID": last})
        finish(engine, job)
        frames = sse_frames(reading.result().text)
    assert (frames[0]["event"], frames[-1]["event"]) == ("job.reopened", "job.succeeded")
    assert [int(found["id"]) for found in first + frames] == list(range(1, int(frames[-1]["id"]) + 1))
    assert json.loads(frames[-1]["data"])["run"] == 2


def test_a_frame_is_one_block_whatever_the_data_holds() -> None:
    text = frame({"number": 1, "type": "step.failed", "data": {"m": "a\n\nid: 9\r\n\u2028"}})
    assert text.count("\n") == 4
    assert "\r" not in text
    assert text.endswith("\n\n")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json;q=0.1, Text/Event-Stream;q=1"])
def test_streams_are_asked_for_by_accept(accept: str) -> None:
    assert wanted(accept)
    assert not wanted("*/*")


def test_the_position_is_a_number() -> None:
    assert position(None, 4) == 4
    assert position("7", 4) == 7
    for wrong in ("-1", "1.5", "٣", "9" * 20):
        with pytest.raises(InvalidInput):
            position(wrong, 0)
