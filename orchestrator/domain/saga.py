"""What must be undone when a job fails, and in which order. Pure.

Every step that ends with ``compensate`` leaves a ``Debt``, written in the settle that ended it. When the job fails, the
debts are paid by steps of their own, in the reverse order of completion; the branches of a fan-out are undone side by
side, each in its own reverse order, at the place of the branch that ended last.

The pattern: Garcia-Molina and Salem, *Sagas*, SIGMOD 1987.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from orchestrator.domain.expressions import Template
from orchestrator.domain.ids import StepPath
from orchestrator.domain.json_values import dumps, loads
from orchestrator.domain.outcome import Failure, Stored
from orchestrator.domain.plan import UNDO, Kind, Node, Plan, StepRow
from orchestrator.domain.workflow import Agent, AgentStep, Compensate, Retry, Timeout

#: A fan-out that is being undone, and one branch of it.
FAN: Final = f"{UNDO}.fan"
BRANCH: Final = f"{FAN}.branch"
#: What waits for nobody and gives way to nobody: a stuck undoing does not stop the others.
_ALL: Final = "100%"


@dataclass(frozen=True, slots=True)
class Debt:
    """A call that is to be undone. ``number``: that of the event that ended it; the order, and the debt's name."""

    number: int
    path: StepPath
    ref: str
    epoch: int
    generation: int
    #: The compensator's input; None while the outcome is unknown.
    input: Stored | None
    #: False: nobody knows whether the call took effect.
    known: bool

    @property
    def outcome(self) -> str:
        return "known" if self.known else "unknown"


def doubtful(failure: Failure | None) -> bool:
    """Whether the call that failed so, or one before it, may have taken effect."""
    if failure is None or failure.detail.get("owed"):  # what it may have done is a debt already
        return False
    return not failure.outcome_known or failure.answered or bool(failure.detail.get("may_have_acted"))


def carry_doubt(failure: Failure, before: Failure | None) -> Failure:
    """``failure``, which still says so if an earlier call may have taken effect."""
    if doubtful(failure) or not doubtful(before):
        return failure
    return replace(failure, detail={**failure.detail, "may_have_acted": True})


def undo_nodes(nodes: dict[str, Node], agents: dict[str, Agent]) -> dict[str, Node]:
    """The places of the undoing steps of a plan; none when nothing in it can be undone."""
    rules = {ref: node.step.compensate for ref, node in nodes.items() if node.step is not None and node.step.compensate}
    if not rules:
        return {}
    out: dict[str, Node] = {}
    for holder in (UNDO, BRANCH):
        leaves = {_leaf(holder, ref): rule for ref, rule in rules.items()}
        out[holder] = Node(
            holder, Kind.UNDO, FAN if holder is BRANCH else None, body=tuple(leaves), max_concurrency=1, tolerate=_ALL
        )
        out |= {ref: _leaf_node(ref, holder, rule, agents[rule.agent]) for ref, rule in leaves.items()}
    out[FAN] = Node(FAN, Kind.UNDO, UNDO, body=(BRANCH,), tolerate=_ALL)
    return out


def _leaf(holder: str, ref: str) -> str:
    return f"{holder}:{ref}"


def _leaf_node(ref: str, holder: str, rule: Compensate, agent: Agent) -> Node:
    """An undoing call is repeated whatever became of the one before, under its own key: at least once."""
    return Node(
        ref,
        Kind.AGENT,
        holder,
        agent=rule.agent,
        step=AgentStep(agent=rule.agent, effect="read"),
        input=Template.compile("${{ owed }}"),
        retry=rule.retry or agent.retry or Retry(),
        timeout=rule.timeout or agent.timeout or Timeout(),
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A child of an undoing composite, before it is a row."""

    ref: str
    vars: str
    undoes: int | None = None


def members(plan: Plan, row: StepRow, under: str | None, owed: Sequence[tuple[Debt, str, str]]) -> list[Member]:
    """What the undoing composite ``row`` opens, in order. ``owed``: each debt, its input's JSON text, its call's key.

    ``under``: its variables; ``under`` in them is the place whose debts a fan-out or a branch pays.
    """
    told = loads(under) if under else {}
    prefix = f"{told['under']}/" if "under" in told else ""
    mine = [one for one in owed if f"{one[0].path}/".startswith(prefix)]
    mine.sort(key=lambda one: -one[0].number)
    match row.ref:
        case _ if row.ref == FAN:
            places: dict[str, None] = {}
            for debt, _, _ in mine:
                places[prefix + debt.path.removeprefix(prefix).partition("/")[0]] = None
            return [Member(BRANCH, dumps({**told, "under": place})) for place in places]
        case _ if row.ref == BRANCH:
            return [_call(BRANCH, *one) for one in mine]
        case _:
            return _units(plan, mine, told)


def _units(plan: Plan, owed: Sequence[tuple[Debt, str, str]], told: Mapping[str, Any]) -> list[Member]:
    units: dict[StepPath, list[tuple[Debt, str, str]]] = defaultdict(list)
    for one in owed:
        units[_fan_of(plan, one[0]) or StepPath(f"{one[0].path}#{one[0].number}")].append(one)
    return [
        _call(UNDO, *unit[0]) if len(unit) == 1 else Member(FAN, dumps({**told, "under": place}))
        for place, unit in units.items()
    ]


def _call(holder: str, debt: Debt, text: str, key: str) -> Member:
    told = dumps({"step": debt.path, "outcome": debt.outcome, "key": key})
    return Member(_leaf(holder, debt.ref), f'{{"owed":{text},"undoing":{told}}}', debt.number)


def _fan_of(plan: Plan, debt: Debt) -> StepPath | None:
    """The outermost fan-out around a step."""
    around = plan.chain(debt.path, debt.ref)[1:]
    fans = [path for path, ref in around if plan.nodes[ref].kind in (Kind.FOR_EACH, Kind.PARALLEL, Kind.DELEGATE)]
    return fans[-1] if fans else None


def container(run: int) -> StepPath:
    """Where the undoing steps of a job's run lie: a name no step of a workflow can have."""
    return StepPath(f"{UNDO}-{run}")


def is_undoing(path: StepPath) -> bool:
    """Whether the step at ``path`` belongs to the undoing, not to the work."""
    return path.startswith(UNDO)
