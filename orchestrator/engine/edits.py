"""What a person changes of a failed step before it goes back to work: checked whole before anything is written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from orchestrator.domain.difference import difference
from orchestrator.domain.errors import InvalidInput, PayloadTooLarge
from orchestrator.domain.expressions import ExpressionError, ExpressionFailed, Template
from orchestrator.domain.ids import StepPath
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import JobRow, Kind, Node, Plan, StepRow
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.workflow import Agent, ChatAgent
from orchestrator.engine.answers import Rejected, passed
from orchestrator.engine.context import Engine
from orchestrator.engine.gather import Claimed, gather
from orchestrator.engine.scope import input_of
from orchestrator.store.session import Session

#: What may be changed.
NAMES = ("input", "agent", "output")


@dataclass(frozen=True, slots=True)
class Edit:
    """Checked changes to the step at ``path``; ``output`` excludes the others."""

    path: StepPath
    by: str
    given: Stored | None = None
    agent: str | None = None
    output: Stored | None = None
    #: For the history: what is different now, compactly.
    difference: dict[str, Any] = field(default_factory=dict)


def examine(
    engine: Engine,
    session: Session,
    job: JobRow,
    row: StepRow | None,
    changes: Mapping[str, Any],
    *,
    by: str,
    known: Mapping[StepPath, StepRow] = MappingProxyType({}),
) -> Edit | None:
    """``{"input": …}``, ``{"agent": name}``, both, or ``{"output": …}``; None when there are no changes.

    ``known``: rows of the job that are not written yet.

    Raises ``InvalidInput`` or ``PayloadTooLarge``, which say what is wrong and where.
    """
    if not changes:
        return None
    _known(changes)
    if row is None or row.kind is not Kind.AGENT:
        raise InvalidInput(
            f"{row.path if row and row.path else 'the whole job'} is no agent's step, so there is nothing to change.",
            mend="Replay it as it is, or invalidate a step before it.",
        )
    plan = engine.plans.get(session, job.version)
    claimed = gather(engine, session, [row], {row.job_id: known})[row.job_id, row.path]
    before = input_or_none(claimed)
    if "output" in changes:
        return _output(engine, plan, claimed, before, changes["output"], by)
    name = row.agent or ""
    said: dict[str, Any] = {}
    if "agent" in changes:
        name = _agent(plan, claimed.node, changes["agent"])
        said["agent"] = {"from": row.agent, "to": name}
    given = None
    if "input" in changes:
        text = _text(changes["input"], "input", engine.caps.body_bytes)
        given = engine.sizes.prepare(text)
        said["input"] = difference(before, loads(text))
        before = loads(text)
    _fits(plan.agents[name], before, name)
    return Edit(row.path, by, given, name if "agent" in changes else None, difference=said)


def call_of(engine: Engine, session: Session, job: JobRow, row: StepRow | None) -> dict[str, Any]:
    """The ``input`` that the step's call is made with, and of a ``chat`` agent the ``prompt``; for people to look at.

    Empty where there is no call, or its input cannot be put together: that is then what failed.
    """
    if row is None or row.kind is not Kind.AGENT or row.agent is None:
        return {}
    claimed = gather(engine, session, [row])[row.job_id, row.path]
    agent = engine.plans.get(session, job.version).agents[row.agent]
    try:
        value = input_of(claimed)
        prompt = Template.compile(agent.prompt).evaluate({"input": value}) if isinstance(agent, ChatAgent) else None
    except (ExpressionError, ExpressionFailed, NotJson):
        return {}
    return {"input": value} if prompt is None else {"input": value, "prompt": prompt}


def _known(changes: Mapping[str, Any]) -> None:
    for name in sorted(changes.keys() - set(NAMES)):
        raise InvalidInput(
            f"changes.{name}: there is nothing of that name to change.", mend=f"One of: {', '.join(NAMES)}."
        )
    if "output" in changes and len(changes) > 1:
        raise InvalidInput(
            "changes.output: a result given by hand ends the step, so its input and agent do not matter.",
            mend="Give output alone, or leave it out.",
        )


def input_or_none(claimed: Claimed) -> Any:
    """The input of a step's call; None where its expression fails: perhaps that is what is to be mended."""
    try:
        return input_of(claimed)
    except (ExpressionFailed, NotJson):
        return None


def _agent(plan: Plan, node: Node, name: Any) -> str:
    if not isinstance(name, str) or name not in plan.agents:
        near = difflib.get_close_matches(str(name), plan.agents, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(
            f"changes.agent: the job's workflow has no agent {name!r}.{hint}",
            mend=f"One of: {', '.join(sorted(plan.agents))}.",
        )
    if plan.agents[name].effect == "irreversible" and (node.step is None or node.step.gate != "none"):
        raise InvalidInput(
            f"changes.agent: {name!r} has an irreversible effect and no gate stands before the step.",
            mend="Choose another agent, or give the step gate: none and submit a new job.",
        )
    return name


def _text(value: Any, name: str, limit: int) -> str:
    try:
        text = dumps(value)
    except NotJson as error:
        raise InvalidInput(f"changes.{name} is not JSON: {error}", mend="Send RFC 8259 JSON.") from error
    if len(text.encode()) > limit:
        raise PayloadTooLarge(
            f"changes.{name} has {len(text.encode())} bytes; the limit is {limit}.",
            mend="Send a reference, or raise ORCHESTRATOR_MAX_BODY_BYTES.",
        )
    return text


def _fits(agent: Agent, value: Any, name: str) -> None:
    if agent.input_schema is None:
        return
    if found := _problems(agent.input_schema, value):
        raise InvalidInput(f"changes.input misses the input_schema of {name!r}: {'; '.join(found)}")


def _problems(schema: Mapping[str, Any], value: Any) -> list[str]:
    return compile_schema(dict(schema), "schema").problems(value)


def _output(engine: Engine, plan: Plan, claimed: Claimed, value: Any, output: Any, by: str) -> Edit:
    agent = plan.agents[claimed.row.agent or ""]
    try:
        text = passed(claimed, agent, value, output, cap=engine.caps.output_bytes, problems=_problems)
    except Rejected as error:
        raise InvalidInput(f"changes.output: {error}.") from error
    said = {"output": "given"}
    return Edit(claimed.row.path, by, output=engine.sizes.prepare(text), difference=said)
