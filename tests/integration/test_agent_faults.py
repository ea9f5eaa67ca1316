"""Rows A1–A4 of the fault matrix at the caller: agents that stall, lie and flood, over a real loopback server.

Bar: classified right; deadlines hold within 1 s; memory bounded (counted in bytes read, not resident size); nothing
invalid is an answer.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.clock import Clock
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.ports import AgentFailed
from tests.support.agent_calls import agent, answer_of, call_context, failure_of_call, with_calls
from tests.support.fake_agents_server import MEBIBYTE, FakeAgents, Reply, gzip_of_zeros
from workers.agents import AgentCalls
from workers.agents.body import BodyTooLarge, BodyUndecodable, read_bounded

LIMIT = 2 * MEBIBYTE
#: What loopback's socket buffers may swallow beyond what the client read.
IN_FLIGHT = 16 * MEBIBYTE


@pytest.fixture
def server() -> Iterator[FakeAgents]:
    with FakeAgents() as running:
        yield running


def http(server: FakeAgents, path: str) -> Any:
    return agent(kind="http", url=f"{server.url}{path}")


def timed_failure(made: Any, timeout: float) -> tuple[Failure, float]:
    started = Clock().monotonic()
    failure, _ = failure_of_call(made, None, call_context(timeout=timeout), max_output_bytes=LIMIT)
    return failure, Clock().monotonic() - started


# A1: 429 with Retry-After, 500s


def test_a1_a_rate_limit_then_errors_then_an_answer_with_one_key_and_one_effect(server: FakeAgents) -> None:
    server.reply("/flaky", Reply(429, b"{}", {"Retry-After": "1"}), Reply(500), Reply(500), Reply(200, b'{"ok": true}'))
    failures = [failure_of_call(http(server, "/flaky"))[0] for _ in range(3)]
    assert [failure.kind.value for failure in failures] == ["rate_limited", "transient", "transient"]
    assert [failure.outcome_known for failure in failures] == [True, False, False]
    assert failures[0].retry_after == 1
    assert answer_of(http(server, "/flaky")).output == {"ok": True}
    assert server.calls["key-1"] == 4, "the caller itself never retries"


def test_a1_the_key_lets_an_agent_act_once_for_many_calls(server: FakeAgents) -> None:
    for _ in range(3):
        answer_of(http(server, "/effect"), None, call_context(key="k"))
    assert (server.calls["k"], server.effects["k"]) == (3, 1)


# A2: hang, slow drip, cuts


@pytest.mark.parametrize("path", ["/hang", "/drip"])
def test_a2_an_agent_that_never_ends_is_a_timeout_with_an_unknown_outcome(server: FakeAgents, path: str) -> None:
    failure, seconds = timed_failure(http(server, path), timeout=0.5)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TIMEOUT, False)
    assert 0.5 <= seconds <= 1.5
    assert server.left.wait(5), "the connection is closed"


def test_a2_a_dripping_error_keeps_its_status(server: FakeAgents) -> None:
    failure, seconds = timed_failure(http(server, "/drip/429"), timeout=10)
    assert failure.kind is FailureClass.RATE_LIMITED
    assert seconds < 4


@pytest.mark.parametrize("path", ["/cut", "/half"])
def test_a2_a_cut_after_sending_leaves_the_outcome_unknown(server: FakeAgents, path: str) -> None:
    failure, _ = timed_failure(http(server, path), timeout=5)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TRANSIENT, False)
    assert server.calls["key-1"] == 1, "a cut POST is not sent again behind our back"


def test_a2_a_reset_connection_leaves_the_outcome_unknown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def reset() -> None:
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        failure, _ = timed_failure(agent(kind="http", url=f"http://127.0.0.1:{listening.getsockname()[1]}/"), 5)
        thread.join(5)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TRANSIENT, False)


def test_a2_a_refused_connection_never_reached_the_agent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    failure, _ = timed_failure(agent(kind="http", url=f"http://127.0.0.1:{port}/"), timeout=5)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TRANSIENT, True)
    assert "Could not connect" in failure.message


def test_a2_a_name_that_does_not_resolve_never_reached_the_agent() -> None:
    failure, _ = timed_failure(agent(kind="http", url="http://nowhere.invalid/"), timeout=20)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TRANSIENT, True)


def test_a2_a_server_that_does_not_speak_http_is_transient_and_unknown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def babble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        failure, _ = timed_failure(agent(kind="http", url=f"http://127.0.0.1:{listening.getsockname()[1]}/"), 5)
        thread.join(5)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TRANSIENT, False)


def test_a2_cancelling_a_call_closes_its_connection_at_once(server: FakeAgents) -> None:
    async def cancel(calls: AgentCalls) -> None:
        task = asyncio.create_task(calls.call(http(server, "/hang"), call_context(timeout=600), None))
        await asyncio.to_thread(server.arrived.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.left.wait, 5)

    with_calls(cancel)


def test_a2_closing_ends_calls_that_still_run_as_cut(server: FakeAgents) -> None:
    async def close(calls: AgentCalls) -> Failure:
        task = asyncio.create_task(calls.call(http(server, "/hang"), call_context(timeout=600), None))
        await asyncio.to_thread(server.arrived.wait, 5)
        await calls.close()
        with pytest.raises(AgentFailed) as caught:
            async with asyncio.timeout(5):
                await task
        return caught.value.failure

    failure = with_calls(close)
    assert (failure.kind, failure.outcome_known) == (FailureClass.TRANSIENT, False)


# A3: invalid JSON, NaN


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b"NaN",
        b'{"score": NaN}',
        b"[Infinity]",
        b"[-Infinity]",
        b'"\xff"',
        b"<html>busy</html>",
        b"[" * 100000 + b"]" * 100000,
        b'{"a": 1} {"b": 2}',
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
def test_a3_what_is_not_json_is_never_an_answer(server: FakeAgents, body: bytes) -> None:
    server.reply("/says", Reply(body=body))
    failure, _ = timed_failure(http(server, "/says"), timeout=10)
    assert failure.kind is FailureClass.INVALID_OUTPUT
    assert failure.answered
    assert failure.outcome_known


# A4: 100 MB body, gzip bomb


@pytest.mark.parametrize("path", ["/huge/100", "/huge/100/chunked"])
def test_a4_a_huge_body_is_not_read_to_its_end(server: FakeAgents, path: str) -> None:
    failure, _ = timed_failure(http(server, path), timeout=30)
    assert failure.kind is FailureClass.INVALID_OUTPUT
    assert failure.answered
    assert f"larger than {LIMIT} bytes" in failure.message
    assert server.left.wait(5)
    assert server.bytes_sent < LIMIT + IN_FLIGHT


def test_a4_a_huge_error_body_is_not_read_to_its_end(server: FakeAgents) -> None:
    server.reply("/error", Reply(500, b"x" * 50 * MEBIBYTE))
    failure, _ = timed_failure(http(server, "/error"), timeout=30)
    assert failure.detail["status"] == 500
    assert server.left.wait(5)
    assert server.bytes_sent < IN_FLIGHT


@pytest.mark.parametrize("path", ["/bomb/300/1", "/bomb/1/300"], ids=["one member", "many members"])
def test_a4_a_gzip_bomb_is_stopped(server: FakeAgents, path: str) -> None:
    failure, _ = timed_failure(http(server, path), timeout=30)
    assert failure.kind is FailureClass.INVALID_OUTPUT
    assert f"larger than {LIMIT} bytes" in failure.message


async def chunks_of(data: bytes, size: int, read: list[int]) -> Any:
    for start in range(0, len(data), size):
        read.append(size)
        yield data[start : start + size]


def test_a4_reading_stops_in_the_chunk_that_passes_the_limit() -> None:
    read: list[int] = []
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_bounded(chunks_of(gzip_of_zeros(300), 4096, read), "gzip", LIMIT))
    assert sum(read) <= 3 * 4096, "2 MiB of spaces are about 2 KiB of gzip"
    read.clear()
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_bounded(chunks_of(b"x" * 100_000, 1000, read), "", 5000))
    assert sum(read) == 6000


def test_a4_a_stream_that_decompresses_to_nothing_is_bounded_too() -> None:
    read: list[int] = []
    empty = gzip_of_zeros(0)
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_bounded(chunks_of(empty * 10_000, 4096, read), "gzip", 10_000))
    assert sum(read) <= 4 * 4096


def test_honest_compression_is_read_in_whole_and_in_pieces() -> None:
    spaces = b" " * MEBIBYTE
    for size in (1, 100, 1_000_000):
        packed = gzip_of_zeros(1, members=2)
        assert asyncio.run(read_bounded(chunks_of(packed, size, []), "gzip", LIMIT)) == spaces * 2


@pytest.mark.parametrize(
    ("body", "encoding"), [(gzip_of_zeros(1)[:-4], "gzip"), (b"plain", "gzip"), (b"x", "br"), (b"x", "gzip, gzip")]
)
def test_broken_or_unasked_compression_is_invalid_output(server: FakeAgents, body: bytes, encoding: str) -> None:
    with pytest.raises(BodyUndecodable):
        asyncio.run(read_bounded(chunks_of(body, 1000, []), encoding, LIMIT))
    server.reply("/packed", Reply(body=body, headers={"Content-Encoding": encoding}))
    failure, _ = timed_failure(http(server, "/packed"), timeout=5)
    assert failure.kind is FailureClass.INVALID_OUTPUT
    assert failure.answered


# Many at once


def test_two_hundred_calls_wait_together_not_in_line(server: FakeAgents) -> None:
    async def many(calls: AgentCalls) -> list[Any]:
        made = http(server, "/delay/1")
        contexts = [call_context(key=f"k-{number}", timeout=60) for number in range(200)]
        answers = await asyncio.gather(*(calls.call(made, context, number) for number, context in enumerate(contexts)))
        return [answer.output["input"] for answer in answers]

    assert with_calls(many) == list(range(200))
    assert server.most_in_flight >= 100, "calls must not queue for a connection"
    assert max(server.calls.values()) == 1
