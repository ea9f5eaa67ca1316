"""The guide's examples run as printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.domain.outcome import FailureClass
from tests.support.agent_calls import agent, answer_of, call_context, failure_of_call

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "write-an-agent.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def agents() -> dict[str, Any]:
    return {name: agent(**made) for block in blocks("yaml") for name, made in yaml.safe_load(block)["agents"].items()}


def test_every_agent_in_the_guide_is_a_valid_definition() -> None:
    assert {made.kind for made in agents().values()} == {"python", "http", "chat", "scripted"}


def test_the_python_agent_of_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks("python")
    (tmp_path / "guide_review").mkdir()
    (tmp_path / "guide_review" / "agents.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    made = agents()["clause-extractor"].model_copy(update={"target": "guide_review.agents:extract_clauses"})
    output = answer_of(made, {"text": "one\n\n two\n"}, search_path=[tmp_path]).output
    assert output == {"clauses": ["one", "two"]}
    failure, _ = failure_of_call(made, {"text": ""}, search_path=[tmp_path])
    assert failure.kind is FailureClass.INVALID_OUTPUT


def test_the_scripted_agent_of_the_guide_works() -> None:
    flaky = agents()["flaky"]
    failure, _ = failure_of_call(flaky, {"text": "hello"})
    assert (failure.kind, failure.retry_after) == (FailureClass.RATE_LIMITED, 1)
    assert answer_of(flaky, {"text": "hello"}, call_context(attempt=2)).output == {"text": "you said hello"}
