"""Webhooks as values: what may be asked for, and what an answer means."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import JobId
from orchestrator.domain.webhook import (
    JOB_ENDS,
    Again,
    Delivered,
    Patience,
    Stop,
    Verdict,
    Webhook,
    judge,
    message_id,
)

URL = "https://example.com/"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_a_url_alone_is_told_of_the_end() -> None:
    assert Webhook.read(URL) == Webhook.read({"url": URL, "events": None, "secret": None}) == Webhook(URL, JOB_ENDS)


def test_events_are_a_set_and_the_secret_is_not_shown() -> None:
    hook = Webhook.read({"url": URL, "events": ["step.failed", "job.failed", "step.failed"], "secret": SECRET})
    assert hook.events == (EventType.JOB_FAILED, EventType.STEP_FAILED)
    assert SECRET not in repr(hook)


def verdict(status: int | None, **more: Any) -> Verdict:
    defaults = {"failures": 0, "failing_for": 0.0, "retry_after": None, "patience": Patience(), "draw": 1.0}
    return judge(status, "why", **{**defaults, **more})


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_any_2xx_takes_it(status: int) -> None:
    assert verdict(status) == Delivered()


@pytest.mark.parametrize("status", [None, 100, 301, 302, 400, 401, 404, 408, 429, 500, 503])
def test_all_else_is_tried_again(status: int | None) -> None:
    found = verdict(status)
    assert isinstance(found, Again)
    assert found.why == ("why" if status is None else f"it answered {status}")


def test_pauses_double_to_the_longest_and_are_spread() -> None:
    pauses = [verdict(500, failures=n) for n in (0, 1, 2, 11, 12, 1000)]
    assert [found.delay for found in pauses if isinstance(found, Again)] == [5, 10, 20, 10_240, 14_400, 14_400]
    least = verdict(500, failures=2, draw=0.0)
    assert isinstance(least, Again)
    assert least.delay == 10


def test_a_day_of_them_is_two_dozen_tries() -> None:
    waited, tries = 0.0, 0
    while isinstance(found := verdict(500, failures=tries, failing_for=waited, draw=0.5), Again):
        waited, tries = waited + found.delay, tries + 1
    assert 15 < tries < 25
    assert 24 <= waited / 3600 < 28


@pytest.mark.parametrize(("asked", "waits"), [(900.0, 900.0), (1.0, 5.0), (1e9, 14_400.0)])
def test_what_it_asks_for_is_the_least(asked: float, waits: float) -> None:
    assert verdict(429, retry_after=asked) == Again(waits, "it answered 429")


def test_gone_ends_it_and_so_does_a_day() -> None:
    assert isinstance(verdict(410), Stop)
    assert isinstance(verdict(500, failing_for=86_400.0), Stop)


def test_a_message_keeps_its_name() -> None:
    assert message_id(JobId("j"), 7) == "evt_j_7"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"url": 7},
        {"url": "https://x.example/\n"},
        {"url": "https://é.example/"},
        {"url": "x" * 3000},
        {"url": URL, "events": []},
        {"url": URL, "events": ["job.exploded"]},
        {"url": URL, "secret": "tooshort"},
        {"url": URL, "secret": "whsec_YQ=="},
        {"url": URL, "secret": "whsec_***"},
        {"url": URL, "colour": "red"},
    ],
)
def test_what_cannot_be_read_is_invalid_and_no_secret_is_quoted(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        Webhook.read(given)
    assert "tooshort" not in str(refused.value)
