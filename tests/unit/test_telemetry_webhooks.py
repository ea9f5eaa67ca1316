"""The sender of webhooks against a real receiver: it always comes back, in time, with what was said."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from orchestrator.clock import Clock
from orchestrator.ports import Message, Reply
from orchestrator.telemetry.webhooks import HttpSender
from tests.support.receiver import Answer, Got, Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as it:
        yield it


def send(url: str, seconds: float = 10.0, times: int = 1) -> Reply:
    """The last reply of so many posts, one after the other."""

    async def run() -> Reply:
        sender = HttpSender(Clock(), 4)
        try:
            for _ in range(times):
                reply = await sender.send(Message(url, {"webhook-id": "x"}, b"{}"), seconds)
            return reply
        finally:
            await sender.close()

    return asyncio.run(run())


@pytest.mark.parametrize("status", [200, 204, 301, 410, 500])
def test_the_status_is_what_counts(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: Answer(status, {"Location": f"{receiver.url}/else"}, b"" if status == 204 else b"x")
    assert send(receiver.url, times=2) == Reply(status)
    assert [got.path for got in receiver.got] == ["/", "/"]
    assert receiver.got[0].headers["webhook-id"] == "x"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), (" 5 ", 5.0), ("soon", None), ("-1", None), ("1.5", None), ("9" * 40, 999_999_999.0)],
)
def test_retry_after_in_seconds(receiver: Receiver, header: str, seconds: float | None) -> None:
    receiver.answer = lambda _: Answer(503, {"Retry-After": header})
    assert send(receiver.url).retry_after == seconds


def test_retry_after_as_a_date(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(503, {"Retry-After": formatdate(Clock().now() + 300, usegmt=True)})
    assert send(receiver.url).retry_after == pytest.approx(300, abs=10)
    receiver.answer = lambda _: Answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert send(receiver.url).retry_after == 0


def test_a_body_without_end_is_not_read(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(200, {}, b"x" * 50_000_000)
    assert send(receiver.url, seconds=5.0) == Reply(200)


def test_one_that_says_nothing_is_left_in_time(receiver: Receiver) -> None:
    over = threading.Event()

    def silent(_: Got) -> Answer:
        over.wait(30)
        return Answer()

    receiver.answer = silent
    clock = Clock()
    began = clock.monotonic()
    assert send(receiver.url, seconds=0.3) == Reply(None, "it did not answer within 0.3 s")
    assert clock.monotonic() - began < 5
    over.set()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/", f"http://{'a' * 70}.example/", "http://no-such-host.invalid/", "https://127.0.0.1:9/"],
)
def test_what_cannot_be_reached_is_an_answer_too(url: str) -> None:
    reply = send(url)
    assert reply.status is None
    assert reply.why
