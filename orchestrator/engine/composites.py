"""What a composite does: evaluates, opens, or ends. Pure: a settle writes it.

Expansion is a function of stored data alone, so a repeat after a crash opens the same steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, assert_never

from orchestrator.domain import saga
from orchestrator.domain.events import EventType
from orchestrator.domain.expressions import ExpressionFailed
from orchestrator.domain.ids import call_key
from orchestrator.domain.json_values import MAX_DEPTH, NotJson, dumps, loads, too_deep
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.plan import Kind
from orchestrator.domain.planner import open_items, open_round, open_static, open_undo
from orchestrator.domain.result import GaveUp, Opened, Result, Skipped, Succeeded
from orchestrator.domain.states import STEP_DONE
from orchestrator.engine.context import Caps, PayloadSizes
from orchestrator.engine.gather import Claimed
from orchestrator.engine.scope import scope
from orchestrator.store.steps import Member

log = logging.getLogger("orchestrator.composites")


def result(claimed: Claimed, sizes: PayloadSizes, caps: Caps) -> Result:
    """What follows from a composite that became ready. An expression that fails is ``permanent``, with its place."""
    try:
        if claimed.opening:
            return _open(claimed, sizes, caps)
        return _storable(_body(claimed, sizes), caps)
    except (ExpressionFailed, NotJson) as error:
        return GaveUp(Failure(FailureClass.PERMANENT, str(error), detail={"step": claimed.row.path}))
    except Exception as error:  # a bug of ours must end in a row, not in a stuck step
        log.exception("composite.bug", extra={"job": claimed.row.job_id, "step": claimed.row.path})
        return GaveUp(Failure(FailureClass.BUG, f"{type(error).__name__}: {error}"))


def _storable(made: Result, caps: Caps) -> Result:
    """Members that each fit may be too much together; every reader of this output would meet it."""
    if not isinstance(made, Succeeded):
        return made
    text = made.output.text or ""
    if len(text) > caps.output_bytes // 4 and (size := len(text.encode())) > caps.output_bytes:
        limit = f"the limit is {caps.output_bytes} (ORCHESTRATOR_MAX_OUTPUT_BYTES)"
        message = f"the outputs together are {size} bytes; {limit}. Let the members answer references."
        return GaveUp(Failure(FailureClass.INVALID_OUTPUT, message, answered=True))
    if too_deep(text):
        message = f"the outputs together nest deeper than {MAX_DEPTH}. Let the members answer flatter values."
        return GaveUp(Failure(FailureClass.INVALID_OUTPUT, message, answered=True))
    return made


def skipped(claimed: Claimed) -> bool:
    """Whether the step's ``when`` is false. Raises ``ExpressionFailed``."""
    when = claimed.node.when
    return when is not None and not when.evaluate(scope(claimed, when))


def _open(claimed: Claimed, sizes: PayloadSizes, caps: Caps) -> Result:
    if skipped(claimed):
        return Skipped()
    node, row, plan = claimed.node, claimed.row, claimed.plan
    match node.kind:
        case Kind.SEQUENCE | Kind.PARALLEL:
            return Opened(row, tuple(open_static(plan, row)))
        case Kind.FOR_EACH | Kind.DELEGATE:
            items = _items(claimed)
            if isinstance(items, GaveUp):
                return items
            if len(items) > caps.width:
                message = f"the fan-out would be {len(items)} wide; the limit is {caps.width}"
                return GaveUp(Failure(FailureClass.PERMANENT, message))
            around = loads(claimed.vars) if claimed.vars else {}
            members = [_member(claimed, item, around, sizes) for item in items]
            return Opened(row, tuple(open_items(plan, row, members)))
        case Kind.SUPERVISE:
            return _round(claimed, 1, None, sizes)
        case Kind.UNDO:
            return _undo(claimed, sizes)
        case Kind.AGENT:
            raise TypeError("an agent step is not a composite")
        case never:
            assert_never(never)


def _undo(claimed: Claimed, sizes: PayloadSizes) -> Result:
    version = claimed.facts.version
    owed = [
        (debt, text, call_key(claimed.row.job_id, debt.path, version, debt.generation)) for debt, text in claimed.owed
    ]
    members = saga.members(claimed.plan, claimed.row, claimed.vars, owed)
    rows = open_undo(claimed.plan, claimed.row, [(one, sizes.prepare(one.vars)) for one in members])
    return Opened(claimed.row, tuple(rows))


def _items(claimed: Claimed) -> list[Any] | GaveUp:
    template = claimed.node.input
    assert template is not None
    items = template.evaluate(scope(claimed, template))
    if isinstance(items, list):
        return items
    message = f"for_each needs a list, got {type(items).__name__}: {dumps(items)[:200]}"
    return GaveUp(Failure(FailureClass.PERMANENT, message, detail={"step": claimed.row.path}))


def _member(claimed: Claimed, item: Any, around: dict[str, Any], sizes: PayloadSizes) -> tuple[Stored, str | None]:
    values = sizes.prepare(dumps({**around, claimed.node.variable or "item": item}))
    return values, item["agent"] if claimed.node.kind is Kind.DELEGATE else None


def _round(claimed: Claimed, number: int, previous: Mapping[str, Any] | None, sizes: PayloadSizes) -> Result:
    node = claimed.node
    assert node.input is not None
    goal = node.input.evaluate(scope(claimed, node.input))
    around = loads(claimed.vars) if claimed.vars else {}
    values = {**around, "goal": goal, "round": number, "previous": previous}
    rows = open_round(claimed.plan, claimed.row, number, sizes.prepare(dumps(values)))
    if previous is None:
        return Opened(claimed.row, tuple(rows))
    data = {"round": number - 1, "met": False, "review": previous["review"]}
    return Opened(claimed.row, tuple(rows), event=EventType.ROUND_REVIEWED, data=data)


def _body(claimed: Claimed, sizes: PayloadSizes) -> Result:
    node = claimed.node
    match node.kind:
        case Kind.SEQUENCE:
            template = node.input
            assert template is not None
            return Succeeded(sizes.prepare(dumps(template.evaluate(scope(claimed, template)))))
        case Kind.FOR_EACH:
            return Succeeded(sizes.prepare(_list(_done(claimed))))
        case Kind.PARALLEL:
            named = (f"{dumps(_name(path))}:{text}" for path, text in _done(claimed))
            return Succeeded(sizes.prepare("{" + ",".join(named) + "}"))
        case Kind.DELEGATE:
            return Succeeded(sizes.prepare(_list([("", _result(row, text)) for row, text in _finished(claimed)])))
        case Kind.SUPERVISE:
            return _verdict(claimed, sizes)
        case Kind.AGENT | Kind.UNDO:
            raise TypeError(f"{node.kind.value} steps have no body")
        case never:
            assert_never(never)


def _finished(claimed: Claimed) -> list[tuple[Member, str]]:
    return [(one, text or "null") for one, text in claimed.members if one.state in STEP_DONE]


def _done(claimed: Claimed) -> list[tuple[str, str]]:
    """(path, output's JSON text) of the branches that succeeded, in order; texts are joined, never parsed again."""
    return [(row.path, text) for row, text in _finished(claimed)]


def _list(items: list[tuple[str, str]]) -> str:
    return "[" + ",".join(text for _, text in items) + "]"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _result(one: Member, text: str) -> str:
    return '{"agent":' + dumps(one.agent) + ',"output":' + text + "}"


def _verdict(claimed: Claimed, sizes: PayloadSizes) -> Result:
    """A round is over: good enough, out of rounds, or once more."""
    node, row = claimed.node, claimed.row
    parts = {_name(one.path): loads(text or "null") for one, text in claimed.members}
    results, review = parts.get("work") or [], parts.get("review")
    assert node.until is not None
    names = {**scope(claimed, node.until), "review": review, "results": results, "round": row.round}
    met = bool(node.until.evaluate(names))
    if not met and row.round < node.rounds:
        return _round(claimed, row.round + 1, {"results": results, "review": review}, sizes)
    if not met and node.fail_when_exhausted:
        message = f"{node.rounds} rounds did not reach: {node.until.source}"
        return GaveUp(Failure(FailureClass.PERMANENT, message, detail={"review": review}))
    outputs = [one["output"] for one in results]
    output = {
        "result": outputs[0] if len(outputs) == 1 else outputs,
        "results": results,
        "review": review,
        "rounds": row.round,
        "met": met,
    }
    return Succeeded(sizes.prepare(dumps(output)), {"rounds": row.round, "met": met})
