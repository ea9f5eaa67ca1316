"""``http`` agents against a real server: what is sent, and what each answer means."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from orchestrator.domain.outcome import FailureClass
from tests.support.agent_calls import agent, answer_of, call_context, failure_of_call, with_calls
from tests.support.fake_agents_server import FakeAgents, Reply
from workers.agents import Egress
from workers.agents.classify import LONGEST_RETRY_AFTER, parse_retry_after

NOW = 1_800_000_000.0


@pytest.fixture
def server() -> Iterator[FakeAgents]:
    with FakeAgents() as running:
        yield running


def http(server: FakeAgents, path: str, **more: Any) -> Any:
    return agent(kind="http", url=f"{server.url}{path}", **more)


def test_the_input_is_posted_as_json_with_the_key_and_the_answer_is_the_output(server: FakeAgents) -> None:
    given = {"text": "§ 1 – “quoted”", "n": [1, 2.5, None, True]}
    answer = answer_of(http(server, "/echo?a=b%20c", headers={"X-Team": "legal"}), given, call_context(key="k-7"))
    assert answer.output == {"input": given, "key": "k-7", "calls": 1}
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/echo?a=b%20c")
    assert request.headers["content-type"] == request.headers["accept"] == "application/json"
    assert request.headers["x-team"] == "legal"
    assert request.headers["host"] == server.url.removeprefix("http://")
    assert request.headers["user-agent"].startswith("orchestrator/")
    assert "transfer-encoding" not in request.headers


def test_the_reconciler_is_asked_at_its_own_address_with_the_same_key_and_input(server: FakeAgents) -> None:
    made = http(server, "/echo", reconcile_url=f"{server.url}/asked")
    server.reply("/asked", Reply(body=b'{"happened": false}'))
    asked = made.reconciler()
    assert answer_of(asked, {"n": 1}, call_context(key="k-7")).output == {"happened": False}
    (request,) = server.requests
    assert (request.method, request.path, request.key) == ("POST", "/asked", "k-7")
    assert http(server, "/echo").reconciler() is None


def test_nothing_of_one_call_reaches_the_next(server: FakeAgents) -> None:
    server.reply("/login", Reply(headers={"Set-Cookie": "session=mine; Path=/"}))

    async def two(calls: Any) -> None:
        for _ in range(2):
            await calls.call(http(server, "/login"), call_context(), None)

    with_calls(two)
    assert server.connections == 1, "the connection is kept"
    assert all("cookie" not in request.headers for request in server.requests)


def test_proxies_of_the_environment_are_not_trusted(server: FakeAgents, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert answer_of(http(server, "/echo"), 1).output["input"] == 1


def test_204_is_null(server: FakeAgents) -> None:
    server.reply("/done", Reply(204, b""))
    assert answer_of(http(server, "/done")).output is None


@pytest.mark.parametrize(
    ("status", "kind", "known"),
    [
        (300, "permanent", True),
        (302, "permanent", True),
        (304, "permanent", True),
        (307, "permanent", True),
        (400, "permanent", True),
        (401, "permanent", True),
        (403, "permanent", True),
        (404, "permanent", True),
        (405, "permanent", True),
        (408, "transient", True),
        (409, "transient", False),
        (410, "permanent", True),
        (413, "permanent", True),
        (422, "permanent", True),
        (425, "transient", True),
        (429, "rate_limited", True),
        (500, "transient", False),
        (501, "permanent", True),
        (502, "transient", False),
        (503, "transient", False),
        (504, "transient", False),
        (599, "transient", False),
    ],
)
def test_each_status_has_one_meaning(server: FakeAgents, status: int, kind: str, known: bool) -> None:
    failure, _ = failure_of_call(http(server, f"/status/{status}?token=secret"))
    assert (failure.kind, failure.outcome_known) == (FailureClass(kind), known)
    assert not failure.answered
    assert failure.detail["status"] == status
    assert f"/status/{status} answered {status}." in failure.message
    assert "secret" not in failure.message


def test_retry_after_is_kept_for_429_and_503_and_makes_503_a_known_refusal(server: FakeAgents) -> None:
    limited, _ = failure_of_call(http(server, "/status/429/7"))
    busy, _ = failure_of_call(http(server, "/status/503/2"))
    broken, _ = failure_of_call(http(server, "/status/400/5"))
    assert (limited.retry_after, busy.retry_after, broken.retry_after) == (7, 2, None)
    assert busy.outcome_known


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        ("99999999999", LONGEST_RETRY_AFTER),
        (format_datetime(datetime.fromtimestamp(NOW + 1e8, UTC), usegmt=True), LONGEST_RETRY_AFTER),
        (None, None),
        ("", None),
        ("-5", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("9" * 400, None),
        ("Mon, 99 Foo 99999 99:99:99 GMT", None),
        ("١٢", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_nonsense(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_a_redirect_is_not_followed(server: FakeAgents) -> None:
    server.reply("/old", Reply(307, b"", {"Location": f"{server.url}/echo"}))
    failure, _ = failure_of_call(http(server, "/old"))
    assert "final address" in failure.message
    assert [request.path for request in server.requests] == ["/old"]


def test_an_error_body_is_quoted_in_part_and_made_storable(server: FakeAgents) -> None:
    server.reply("/bad", Reply(400, b"nul \0 broken \xff " + b"x" * 100_000))
    failure, _ = failure_of_call(http(server, "/bad"))
    body = failure.detail["body"]
    assert body.startswith("nul \N{REPLACEMENT CHARACTER} broken \N{REPLACEMENT CHARACTER} x")
    assert len(body.encode()) <= 2048


def test_egress_refuses_before_a_connection_is_made(server: FakeAgents) -> None:
    failure, _ = failure_of_call(http(server, "/echo"), egress=Egress(["https://api.example.com"]))
    assert failure.kind is FailureClass.REFUSED_BY_POLICY
    assert server.connections == 0


@pytest.mark.parametrize("name", ["Host", "idempotency-key", "Content-Length", "Transfer-Encoding", "bad name", "x:y"])
def test_headers_the_worker_owns_or_http_forbids_are_refused(server: FakeAgents, name: str) -> None:
    failure, _ = failure_of_call(http(server, "/echo", headers={name: "v"}))
    assert failure.kind is FailureClass.PERMANENT
    assert repr(name) in failure.message
    assert server.connections == 0


def test_a_header_value_cannot_smuggle_another(server: FakeAgents) -> None:
    failure, _ = failure_of_call(http(server, "/echo", headers={"X-A": "v\r\nX-B: w"}))
    assert failure.kind is FailureClass.PERMANENT
    assert server.connections == 0


def test_input_that_json_cannot_say_is_permanent(server: FakeAgents) -> None:
    failure, _ = failure_of_call(http(server, "/echo"), float("nan"))
    assert failure.kind is FailureClass.PERMANENT
    assert server.connections == 0
