"""Steps that leave it to the default what happens when they fail are named, wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.failure_paths import LeftToDefault, left_to_default, require
from orchestrator.domain.workflow import Workflow

SAID: dict[str, Any] = {"agent": "a", "on_failure": []}
RULE: dict[str, Any] = {"supervisor": "a", "workers": ["a"], "rounds": 1, "until": "true"}


def workflow(*steps: dict[str, Any]) -> Workflow:
    named = [{"id": f"s{i}", **step} for i, step in enumerate(steps)]
    return Workflow.model_validate({"name": "t", "agents": {"a": {"kind": "scripted"}}, "steps": named})


def places(flow: Workflow) -> list[str]:
    return [problem.path for problem in left_to_default(flow)]


def test_the_linter_names_each_step_that_says_nothing() -> None:
    """E1: the step, its place, and what to write."""
    flow = workflow(
        {"agent": "a"},
        SAID,
        {"for_each": "[1]", "do": [{"id": "x", "agent": "a"}, {"id": "y", **SAID}]},
        {"parallel": {"one": {"agent": "a"}, "two": {"for_each": "[1]", "do": {"agent": "a"}}}},
        {"supervise": RULE},
        {"supervise": {**RULE, "otherwise": "accept"}},
    )
    assert places(flow) == [
        "steps[0].on_failure",
        "steps[2].do[0].on_failure",
        "steps[3].parallel.one.on_failure",
        "steps[3].parallel.two.do.on_failure",
        "steps[4].supervise.otherwise",
    ]
    assert "the step 's0' leaves to the default what happens when it fails" in str(left_to_default(flow)[0])
    with pytest.raises(LeftToDefault, match="on_failure: \\[\\] to fail"):
        require(flow)


@pytest.mark.parametrize("entry", [{"agent": "a"}, {"value": None}, {"skip": True}])
def test_what_is_said_is_said(entry: dict[str, Any]) -> None:
    flow = workflow({"agent": "a", "on_failure": [entry]}, SAID)
    assert left_to_default(flow) == []
    require(flow)
