"""Logs: the event's name comes first, the standard library's lines look the same, secrets never appear."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from orchestrator.settings import Settings
from orchestrator.telemetry import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Gives back the root logger as it was."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield io.StringIO()
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_kinds_of_logger_write_the_same_line(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    structlog.get_logger("orchestrator.one").warning("step.lost", job="j1", count=3)
    logging.getLogger("orchestrator.one").warning("step.lost", extra={"job": "j1", "count": 3})
    first, second = lines(stream)
    assert list(first)[:4] == ["event", "level", "logger", "at"]
    assert list(second)[:4] == ["event", "level", "logger", "at"]
    assert str(first.pop("at")).endswith("Z")
    second.pop("at")
    assert first == second == {
        "event": "step.lost", "level": "warning", "logger": "orchestrator.one", "job": "j1", "count": 3
    }  # fmt: skip


def test_what_is_bound_to_the_context_is_on_every_line(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    with structlog.contextvars.bound_contextvars(job="j1", step="a/b", worker="w1"):
        logging.getLogger("library").error("old %s", "style")
        structlog.get_logger().info("new.style")
    for line in lines(stream):
        assert (line["job"], line["step"], line["worker"]) == ("j1", "a/b", "w1")
    assert [line["event"] for line in lines(stream)] == ["old style", "new.style"]


def test_configured_again_it_starts_over(stream: io.StringIO) -> None:
    for _ in range(3):
        logs.configure(stream=stream, level="warning")
    logging.getLogger("x").info("not said")
    structlog.get_logger("x").info("not said")
    logging.getLogger("x").warning("said.once")
    assert [line["event"] for line in lines(stream)] == ["said.once"]


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    try:
        int("postgresql://me:hunter22@host/db")
    except ValueError:
        logging.getLogger("x").exception("it.broke")
    [line] = lines(stream)
    assert "ValueError" in str(line["exception"])
    assert "hunter22" not in stream.getvalue()


SECRETS = [
    {"password": "hunter22"},
    {"api_key": "hunter22"},
    {"Authorization": "Bearer hunter22aaaa"},
    {"headers": {"authorization": "hunter22"}},
    {"chat_token": "hunter22"},
    {"url": "redis://:hunter22@localhost:6379/0"},
    {"url": "postgresql+psycopg://me:hunter22@localhost/db"},
    {"text": "sent Authorization: Bearer hunter22abcdef and failed"},
    {"list": ["amqp://guest:hunter22@localhost//"]},
    {"value": "it was hunter22 all along"},
]


@pytest.mark.parametrize("fields", SECRETS)
@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_never_written(stream: io.StringIO, fields: dict[str, object], form: str) -> None:
    logs.configure(form=form, stream=stream, secrets=["hunter22"] if "value" in fields else [])  # type: ignore[arg-type]
    structlog.get_logger("x").error("call.failed", **fields)
    logging.getLogger("x").error("call.failed", extra=fields)
    text = stream.getvalue()
    assert text.count("call.failed") == 2
    assert "hunter22" not in text
    assert "***" in text


def test_names_that_only_sound_secret_are_shown(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    structlog.get_logger().info("usage", input_tokens=12, key="contract-7", token_count=3)
    [line] = lines(stream)
    assert (line["input_tokens"], line["key"], line["token_count"]) == (12, "contract-7", 3)


def test_the_settings_secrets_are_known(stream: io.StringIO) -> None:
    settings = Settings.load(
        env_file=None,
        database_url="postgresql://me:p%40ss-word@db/x",
        broker_url="redis://cache:6379/0",
        api_key="very-secret-key",
    )
    assert sorted(logs.secrets_of(settings)) == ["p%40ss-word", "very-secret-key"]
    logs.configure_from(settings, stream=stream)
    logging.getLogger("x").error("leak: p%%40ss-word and %s", "very-secret-key")
    assert "p%40ss" not in stream.getvalue()
    assert "very-secret" not in stream.getvalue()


def test_warnings_are_logged(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind the gap", stacklevel=1)
    assert "mind the gap" in stream.getvalue()
