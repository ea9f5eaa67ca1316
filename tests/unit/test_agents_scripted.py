"""Scripted agents do what the script says for the attempt, and nothing else."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from orchestrator.domain.outcome import FailureClass
from tests.support.agent_calls import agent, answer_of, call_context, failure_of_call, with_calls
from workers.agents import AgentCalls


def scripted(*script: dict[str, Any]) -> Any:
    return agent(kind="scripted", script=script)


def test_without_a_script_the_input_is_the_answer() -> None:
    assert answer_of(scripted(), {"a": [1]}).output == {"a": [1]}


def test_attempt_n_plays_entry_n_and_the_last_one_repeats() -> None:
    two = scripted({"output": "first"}, {"output": "second"})
    outputs = [answer_of(two, None, call_context(attempt=number)).output for number in (1, 2, 3, 9)]
    assert outputs == ["first", "second", "second", "second"]


def test_output_is_a_template_over_the_input() -> None:
    made = scripted({"output": {"same": "${{ input.n }}", "text": "n is ${{ input.n }}"}})
    assert answer_of(made, {"n": 3}).output == {"same": 3, "text": "n is 3"}


def test_output_may_be_null() -> None:
    assert answer_of(scripted({"output": None}), "x").output is None


def test_an_expression_that_fails_is_permanent_and_names_its_place() -> None:
    failure, _ = failure_of_call(scripted({"output": "${{ input.missing }}"}), {})
    assert failure.kind is FailureClass.PERMANENT
    assert "script[0].output" in failure.message


@pytest.mark.parametrize("kind", list(FailureClass))
def test_every_failure_class_can_be_played(kind: FailureClass) -> None:
    failure, _ = failure_of_call(scripted({"fail": {"class": kind.value, "message": "as told", "retry_after": 2}}))
    assert (failure.kind, failure.message, failure.retry_after) == (kind, "as told", 2)
    assert failure.outcome_known is (kind.value not in ("timeout", "worker_lost", "in_doubt"))
    assert failure.answered is (kind.value in ("invalid_output", "bug"))


def test_the_outcome_can_be_told() -> None:
    failure, _ = failure_of_call(scripted({"fail": {"class": "transient", "outcome_known": False, "answered": True}}))
    assert not failure.outcome_known
    assert failure.answered


def test_a_delay_is_awaited_before_the_answer() -> None:
    assert answer_of(scripted({"delay": "10ms", "output": 1})).output == 1


def test_a_delay_can_be_cut_short() -> None:
    async def use(calls: AgentCalls) -> None:
        async with asyncio.timeout(0.05):
            await calls.call(scripted({"delay": "1h", "output": 1}), call_context(), None)

    with pytest.raises(TimeoutError):
        with_calls(use)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({}, "script[0]"),
        ({"delay": "1s"}, "script[0]"),
        ({"delay": "soon", "output": 1}, "script[0].delay"),
        ({"fail": {"class": "sulking"}}, "script[0].fail.class"),
        ({"output": 1, "fail": {"class": "bug"}}, "script[0]"),
        ({"answer": 1}, "script[0].answer"),
    ],
)
def test_a_broken_entry_is_permanent_and_names_its_place(entry: dict[str, Any], place: str) -> None:
    failure, _ = failure_of_call(scripted(entry))
    assert failure.kind is FailureClass.PERMANENT
    assert failure.message.startswith(place)


def test_exit_is_refused_unless_it_was_allowed() -> None:
    failure, _ = failure_of_call(scripted({"exit": True}))
    assert failure.kind is FailureClass.REFUSED_BY_POLICY


def test_exit_ends_the_process_as_a_kill_would() -> None:
    program = (
        "from tests.support.agent_calls import agent, answer_of\n"
        "answer_of(agent(kind='scripted', script=[{'exit': True}]), allow_exit=True)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 137
