"""What keeps a well-formed workflow from running, found when it is registered: names, order, expressions, effects.

Which outputs an expression may read follows from order: a list runs in order unless one of its steps has ``needs``;
then ``needs`` alone orders it. A step reads the steps of its list that have ended before it, and what the steps
around it may read. Of two steps with the same id the one in the innermost list is meant.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, assert_never

from orchestrator.domain.cel_source import is_variable
from orchestrator.domain.errors import DefinitionError, Problem
from orchestrator.domain.expressions import Expression, ExpressionError, Template, bare, condition
from orchestrator.domain.schemas import compile_schema, place_text
from orchestrator.domain.step_order import Order, order_of
from orchestrator.domain.workflow import (
    Agent,
    AgentStep,
    Body,
    ChatAgent,
    ForEachStep,
    ParallelStep,
    ScriptedAgent,
    Step,
    SuperviseStep,
    Workflow,
)

MAX_NESTING = 16
MAX_STEPS = 10_000
MAX_PROBLEMS = 100
_ALWAYS = frozenset({"input", "steps", "job"})
#: Names that mean something in one field or another; a loop variable of that name would hide it there.
_TAKEN = _ALWAYS | {"output", "review", "results", "round", "goal", "previous", "assignment"}
_NONE: Mapping[str, Agent] = MappingProxyType({})

Path = tuple[str | int, ...]


def check_workflow(workflow: Workflow, known_agents: Mapping[str, Agent] | None = _NONE) -> list[Problem]:
    """What is wrong with ``workflow``, at most 100 problems; empty: it can be registered.

    ``known_agents`` are those registered apart. None: they are not known here, and an agent that the workflow does
    not define is let pass.
    """
    checker = _Checker(workflow, known_agents)
    with contextlib.suppress(_Enough):
        checker.check()
    return checker.problems


class _Enough(Exception):
    """So many problems that looking for more would only cost time."""


@dataclass(frozen=True, slots=True)
class _List:
    """A list of steps as one of them sees it."""

    order: Order
    at: int


@dataclass(frozen=True, slots=True)
class _Scope:
    """What an expression may name. ``lists``: innermost first. ``depth``: how many steps lie around."""

    names: frozenset[str] = _ALWAYS
    lists: tuple[_List, ...] = ()
    depth: int = 0

    def knowing(self, *names: str) -> _Scope:
        return replace(self, names=self.names | set(names))

    def readable(self) -> list[str]:
        return [step for seen in self.lists for step in seen.order.before(seen.at)]


@dataclass(slots=True)
class _Checker:
    workflow: Workflow
    known: Mapping[str, Agent] | None
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def check(self) -> None:
        self._schema(self.workflow.input_schema, ("input_schema",))
        for name, agent in self.workflow.agents.items():
            self._agent(agent, ("agents", name))
        self._steps(self.workflow.steps, ("steps",), _Scope())
        ended = order_of(_names(self.workflow.steps), _wants(self.workflow.steps))
        self._template(self.workflow.output, ("output",), _Scope(lists=(_List(ended, len(ended.names)),)))

    def _say(self, path: Path, message: str, nearest: str | None = None) -> None:
        self.problems.append(Problem(message, place_text(path), nearest=nearest))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Enough

    # -- steps

    def _steps(self, steps: Sequence[Step], path: Path, scope: _Scope) -> None:
        self.count += len(steps)
        if self.count > MAX_STEPS:
            self._say(path, f"the definition has more than {MAX_STEPS} steps; fan out over data with for_each")
            raise _Enough
        order = order_of(_names(steps), _wants(steps))
        for i, step in enumerate(steps):
            self._id(step, i, order, (*path, i))
        if order.cycle:
            at = order.places[order.cycle[0]]
            ring = order.cycle if len(order.cycle) <= 12 else (*order.cycle[:10], "…", order.cycle[-1])
            self._say((*path, at, "needs"), f"the steps wait for each other in a cycle: {' → '.join(ring)}")
        for i, step in enumerate(steps):
            self._step(step, (*path, i), replace(scope, lists=(_List(order, i), *scope.lists)))

    def _id(self, step: Step, i: int, order: Order, path: Path) -> None:
        if step.id is None:
            self._say(path, "a step in a list needs an id")
        elif order.places[step.id] < i:
            self._say((*path, "id"), f"the id {step.id!r} is used twice in this list")
        seen: set[str] = set()
        for k, need in enumerate(step.needs or ()):
            if need not in order.places:
                self._say((*path, "needs", k), f"there is no step {need!r} in this list", _near(need, order.names))
            elif need in seen:
                self._say((*path, "needs", k), f"{need!r} is named twice")
            seen.add(need)

    def _body(self, body: Body, path: Path, scope: _Scope) -> None:
        if isinstance(body, tuple):
            self._steps(body, path, scope)
            return
        if body.needs is not None:
            self._say((*path, "needs"), "needs orders the steps of a list; this step stands alone")
        self.count += 1
        self._step(body, path, scope)

    def _step(self, step: Step, path: Path, scope: _Scope) -> None:
        if scope.depth == MAX_NESTING:
            self._say(path, f"steps nested deeper than {MAX_NESTING}")
            return
        if step.when is not None:
            self._condition(step.when, (*path, "when"), scope)
        inner = replace(scope, depth=scope.depth + 1)
        match step:
            case AgentStep():
                self._agent_step(step, path, scope)
            case ForEachStep():
                self._for_each(step, path, scope, inner)
            case ParallelStep():
                for name, branch in step.parallel.items():
                    self._body(branch, (*path, "parallel", name), inner)
            case SuperviseStep():
                self._supervise(step, path, scope)
            case _:
                assert_never(step)

    def _agent_step(self, step: AgentStep, path: Path, scope: _Scope) -> None:
        agent = self._named(step.agent, (*path, "agent"))
        for i, entry in enumerate(step.on_failure):
            if entry.agent is not None:
                self._fallback(step, entry.agent, (*path, "on_failure", i, "agent"))
        if "irreversible" in (step.effect, agent.effect if agent else None) and step.gate != "none":
            whose = "the step" if step.effect == "irreversible" else f"the agent {step.agent!r}"
            self._say(
                path,
                f"{whose} has an irreversible effect and nobody is asked before it: a retry or a wrong plan could not "
                "be undone. If that is meant, write gate: none",
            )
        self._template(step.with_, (*path, "with"), scope)
        self._compensate(step, path, scope)
        self._schema(step.output_schema, (*path, "output_schema"))
        for i, check in enumerate(step.checks):
            self._condition(check, (*path, "checks", i), scope.knowing("output"))

    def _compensate(self, step: AgentStep, path: Path, scope: _Scope) -> None:
        if step.compensate is None:
            return
        if step.effect == "read":
            self._say(
                (*path, "compensate"), "a step that only reads leaves nothing to undo: drop this, or effect: read"
            )
        self._named(step.compensate.agent, (*path, "compensate", "agent"))
        self._template(step.compensate.with_, (*path, "compensate", "with"), scope.knowing("output"))

    def _for_each(self, step: ForEachStep, path: Path, scope: _Scope, inner: _Scope) -> None:
        try:
            self._reads(Expression.compile(bare(step.for_each)), (*path, "for_each"), scope)
        except ExpressionError as error:
            self._say((*path, "for_each"), error.message)
        if not is_variable(step.as_):
            self._say(
                (*path, "as"), f"{step.as_!r} cannot be a variable in CEL: use letters, digits and _, no word of CEL"
            )
        elif step.as_ in _TAKEN:
            self._say((*path, "as"), f"{step.as_!r} has a meaning of its own; take another name for the loop variable")
        self._body(step.do, (*path, "do"), inner.knowing(step.as_))

    def _supervise(self, step: SuperviseStep, path: Path, scope: _Scope) -> None:
        rule, at = step.supervise, (*path, "supervise")
        called: list[tuple[str, Path]] = [(rule.supervisor, (*at, "supervisor"))]
        called += [(worker, (*at, "workers", i)) for i, worker in enumerate(rule.workers)]
        called += [(rule.reviewer, (*at, "reviewer"))] if rule.reviewer else []
        for name, place in called:
            agent = self._named(name, place)
            if agent is not None and agent.effect == "irreversible":
                self._say(place, f"{name!r} has an irreversible effect: give it a step of its own, with gate: none")
        self._template(step.with_, (*path, "with"), scope)
        self._condition(rule.until, (*at, "until"), scope.knowing("review", "results", "round"))

    def _fallback(self, step: AgentStep, name: str, path: Path) -> None:
        agent = self._named(name, path)
        if agent is not None and agent.effect == "irreversible" and step.gate != "none":
            self._say(
                path, f"the agent {name!r} is irreversible and no gate stands before it: set gate: none to allow it"
            )

    # -- agents and schemas

    def _named(self, name: str, path: Path) -> Agent | None:
        agent = self.workflow.agents.get(name) or (self.known or {}).get(name)
        if agent is None and self.known is not None:
            known = [*self.workflow.agents, *self.known]
            self._say(path, f"there is no agent {name!r}: define it under agents, or register it", _near(name, known))
        return agent

    def _agent(self, agent: Agent, path: Path) -> None:
        self._schema(agent.input_schema, (*path, "input_schema"))
        self._schema(agent.output_schema, (*path, "output_schema"))
        own = _Scope(names=frozenset({"input"}))
        if isinstance(agent, ChatAgent):
            self._template(agent.prompt, (*path, "prompt"), own)
        if isinstance(agent, ScriptedAgent):
            for i, turn in enumerate(agent.script):
                self._template(turn.get("output"), (*path, "script", i, "output"), own)
            for i, turn in enumerate(agent.reconcile):
                self._template(turn.get("output"), (*path, "reconcile", i, "output"), own)

    def _schema(self, schema: dict[str, Any] | None, path: Path) -> None:
        if schema is None:
            return
        try:
            compile_schema(schema, place_text(path))
        except DefinitionError as error:
            self.problems.extend(error.problems)

    # -- expressions

    def _condition(self, source: str, path: Path, scope: _Scope) -> None:
        try:
            found = condition(source)
        except ExpressionError as error:
            self._say(path, error.message)
        else:
            self._reads(found, path, scope)

    def _template(self, value: Any, path: Path, scope: _Scope) -> None:
        for place, text, is_key in _strings(value, path):
            try:
                found = Template.compile({text: None} if is_key else text)
            except ExpressionError as error:
                self._say(place, error.message)
            else:
                self._reads(found, place, scope)

    def _reads(self, found: Expression | Template, path: Path, scope: _Scope) -> None:
        for name in sorted(found.names - scope.names):
            self._say(path, f"there is no {name!r} here, only {_listed(scope.names)}", _near(name, scope.names))
        for name in sorted(found.steps) if "steps" in scope.names else ():
            self._read(name, path, scope)

    def _read(self, name: str, path: Path, scope: _Scope) -> None:
        for seen in scope.lists:
            if name in seen.order.places:
                if not seen.order.ends_before(name, seen.at):
                    own = seen.order.names[seen.at : seen.at + 1] == [name]
                    self._say(path, "a step cannot read its own output" if own else self._too_early(name, seen))
                return
        readable = scope.readable()
        near = _near(name, readable) or next((other for other in readable if other.startswith(f"{name}-")), None)
        hint = f'. An id with - is written steps["{near}"]' if near and "-" in near else ""
        self._say(path, f"there is no step {name!r} whose output could be read here{hint}", near)

    @staticmethod
    def _too_early(name: str, seen: _List) -> str:
        mend = f"add {name!r} to its needs" if seen.order.graph else "move it up, or order the list with needs"
        return f"step {name!r} need not have ended when this is read: {mend}"


def _names(steps: Sequence[Step]) -> list[str]:
    return [step.id or str(i) for i, step in enumerate(steps)]


def _wants(steps: Sequence[Step]) -> list[tuple[str, ...]] | None:
    """What each step needs; None for a plain list."""
    if all(step.needs is None for step in steps):
        return None
    return [step.needs or () for step in steps]


def _strings(value: Any, path: Path) -> Iterator[tuple[Path, str, bool]]:
    """Every text in ``value`` that may hold an expression: (place, text, whether it is a key)."""
    match value:
        case str():
            yield path, value, False
        case dict():
            for key, item in value.items():
                yield (*path, key), key, True
                yield from _strings(item, (*path, key))
        case list() | tuple():
            for i, item in enumerate(value):
                yield from _strings(item, (*path, i))
        case _:
            return


def _near(word: str, words: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(word, sorted(words), 1)
    return near[0] if near else None


def _listed(names: Iterable[str]) -> str:
    *most, last = sorted(names)
    return f"{', '.join(most)} and {last}" if most else last
