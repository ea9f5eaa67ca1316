"""From a definition to a plan, and from a plan to step rows. Pure: a repeat after a crash writes the same paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.domain.expressions import Expression, Template, condition
from orchestrator.domain.ids import ROOT, JobId, StepPath, child
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import Kind, Node, Plan, Read, StepRow
from orchestrator.domain.saga import Member, undo_nodes
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import (
    Agent,
    AgentStep,
    Compensate,
    ForEachStep,
    ParallelStep,
    Retry,
    StepBase,
    SuperviseStep,
    Timeout,
    Workflow,
)

#: Members written in one transaction; a wider fan-out is written in chunks of so many.
CHUNK = 1000


def compile_plan(workflow: Workflow, version: str, registered: Mapping[str, Agent] | None = None) -> Plan:
    """The plan of a workflow that has passed ``domain/lint.py``; local agents win over registered ones."""
    builder = _Builder({**(registered or {}), **workflow.agents})
    output = None if workflow.output is None else Template.compile(workflow.output)
    builder.sequence("", None, workflow.steps, Template.compile("${{ input }}"), [], output=output)
    nodes = builder.nodes | undo_nodes(builder.nodes, builder.agents)
    return Plan(workflow.name, version, nodes, builder.agents, undo_on_cancel=workflow.on_cancel == "compensate")


class _Builder:
    def __init__(self, agents: dict[str, Agent]) -> None:
        self.agents = agents
        self.nodes: dict[str, Node] = {}

    def sequence(
        self,
        ref: str,
        parent: str | None,
        steps: Sequence[StepBase],
        first: Template,
        scopes: list[frozenset[str]],
        needs: tuple[str, ...] = (),
        successors: tuple[str, ...] = (),
        output: Template | None = None,
    ) -> None:
        names = tuple(step.id or str(i) for i, step in enumerate(steps))
        graph = any(step.needs is not None for step in steps)
        wants = [
            tuple(step.needs or ()) if graph else names[max(i - 1, 0) : i]  # a list: each waits for the one before
            for i, step in enumerate(steps)
        ]
        inner = [frozenset(names), *scopes]
        refs = tuple(f"{ref}.{name}" if ref else name for name in names)
        reads = tuple(Read(name, 0) for name in sorted(output.steps)) if output else ()
        self.nodes[ref] = Node(
            ref, Kind.SEQUENCE, parent, names, refs, needs, successors, input=output, reads=reads, line=not graph
        )
        for i, step in enumerate(steps):
            after = tuple(name for name, want in zip(names, wants, strict=True) if names[i] in want)
            self.step(refs[i], ref, step, _default_input(wants[i], first), inner, wants[i], after)

    def body(
        self,
        ref: str,
        parent: str,
        body: StepBase | tuple[StepBase, ...],
        first: Template,
        scopes: list[frozenset[str]],
    ) -> None:
        if isinstance(body, tuple):
            self.sequence(ref, parent, body, first, [frozenset(), *scopes])
        else:
            self.step(ref, parent, body, first, [frozenset(), *scopes], (), ())

    def step(
        self,
        ref: str,
        parent: str,
        step: StepBase,
        default: Template,
        scopes: list[frozenset[str]],
        needs: tuple[str, ...],
        successors: tuple[str, ...],
    ) -> None:
        when = condition(step.when) if step.when else None
        base = Node(ref, Kind.AGENT, parent, needs=needs, successors=successors, when=when)
        match step:
            case AgentStep():
                node = self.agent(base, step, default, scopes)
            case ForEachStep():
                items = Template.compile(_as_template(step.for_each))
                node = replace(
                    base,
                    kind=Kind.FOR_EACH,
                    body=(f"{ref}.do",),
                    input=items,
                    reads=_reads(scopes, items, when),
                    variable=step.as_,
                    max_concurrency=step.max_concurrency,
                    tolerate=step.join.tolerate,
                    stop_branches=step.on_branch_failure == "stop",
                )
                self.body(f"{ref}.do", ref, step.do, Template.compile("${{ " + step.as_ + " }}"), scopes)
            case ParallelStep():
                names = tuple(step.parallel)
                node = replace(
                    base,
                    kind=Kind.PARALLEL,
                    names=names,
                    body=tuple(f"{ref}.{name}" for name in names),
                    reads=_reads(scopes, when),
                    max_concurrency=step.max_concurrency,
                    tolerate=step.join.tolerate,
                    stop_branches=step.on_branch_failure == "stop",
                )
                for name, branch in step.parallel.items():
                    self.body(f"{ref}.{name}", ref, branch, default, scopes)
            case SuperviseStep():
                node = self.supervise(base, step, default, scopes)
            case _:  # pragma: no cover - the union is closed by pydantic
                raise TypeError(f"unknown step form {type(step).__name__}")
        self.nodes[ref] = node

    def agent(self, base: Node, step: AgentStep, default: Template, scopes: list[frozenset[str]]) -> Node:
        agent = self.agents[step.agent]
        given = default if "with_" not in step.model_fields_set else Template.compile(step.with_)
        checks = tuple(condition(check) for check in step.checks)
        owes = None if step.compensate is None else _owes(step.compensate)
        return replace(
            base,
            agent=step.agent,
            step=step,
            input=given,
            checks=checks,
            owes=owes,
            reads=_reads(scopes, given, base.when, owes, *checks),
            output_schema=step.output_schema,
            retry=step.retry or agent.retry or Retry(),
            timeout=step.timeout or agent.timeout or Timeout(),
        )

    def supervise(self, base: Node, step: SuperviseStep, default: Template, scopes: list[frozenset[str]]) -> Node:
        """A round is a sequence of three steps: plan → work → review; its variables are goal, round and previous."""
        rule = step.supervise
        ref, one = base.ref, f"{base.ref}.round"
        goal = default if "with_" not in step.model_fields_set else Template.compile(step.with_)
        until = condition(rule.until)
        told = {"round": "${{ round }}", "goal": "${{ goal }}"}
        plan_input = {"phase": "plan", **told, "workers": list(rule.workers), "previous": "${{ previous }}"}
        inner = [frozenset({"plan", "work", "review"}), frozenset[str](), *scopes]
        body = (f"{one}.plan", f"{one}.work", f"{one}.review")
        self.nodes[one] = Node(one, Kind.SEQUENCE, ref, ("plan", "work", "review"), body, line=True)
        plan = AgentStep.model_validate({"agent": rule.supervisor, "with": plan_input})
        plan_node = self.agent(Node(f"{one}.plan", Kind.AGENT, one, successors=("work",)), plan, default, inner)
        self.nodes[f"{one}.plan"] = replace(plan_node, output_schema=_assignments_schema(rule.workers))
        work_items = Template.compile("${{ steps.plan.assignments }}")
        self.nodes[f"{one}.work"] = Node(
            f"{one}.work",
            Kind.DELEGATE,
            one,
            body=(f"{one}.work.do",),
            needs=("plan",),
            successors=("review",),
            input=work_items,
            reads=_reads(inner, work_items),
            variable="assignment",
            max_concurrency=step.max_concurrency,
        )
        # Which worker it is, each member's row says; its retry and timeout are looked up then.
        hand = Template.compile("${{ assignment.input }}")
        self.nodes[f"{one}.work.do"] = Node(f"{one}.work.do", Kind.AGENT, f"{one}.work", input=hand)
        review = AgentStep.model_validate(
            {
                "agent": rule.reviewer or rule.supervisor,
                "with": {"phase": "review", **told, "results": "${{ steps.work }}"},
            }
        )
        review_node = Node(f"{one}.review", Kind.AGENT, one, needs=("work",))
        self.nodes[f"{one}.review"] = self.agent(review_node, review, default, inner)
        return replace(
            base,
            kind=Kind.SUPERVISE,
            body=(one,),
            input=goal,
            until=until,
            rounds=rule.rounds,
            fail_when_exhausted=rule.otherwise == "fail",
            reads=_reads(scopes, goal, base.when, until),
        )


def _assignments_schema(workers: Iterable[str]) -> dict[str, Any]:
    one = {
        "type": "object",
        "required": ["agent", "input"],
        "properties": {"agent": {"enum": list(workers)}},
    }
    return {
        "type": "object",
        "required": ["assignments"],
        "properties": {"assignments": {"type": "array", "minItems": 1, "items": one}},
    }


def _owes(rule: Compensate) -> Template:
    return Template.compile(rule.with_ if "with_" in rule.model_fields_set else "${{ output }}")


def _as_template(source: str) -> str:
    return source if "${{" in source else "${{ " + source + " }}"


def _default_input(needs: tuple[str, ...], first: Template) -> Template:
    if not needs:
        return first
    if len(needs) == 1:
        return Template.compile(f'${{{{ steps["{needs[0]}"] }}}}')
    return Template.compile({name: f'${{{{ steps["{name}"] }}}}' for name in needs})


def _reads(scopes: list[frozenset[str]], *sources: Expression | Template | None) -> tuple[Read, ...]:
    """Where each step id used by ``sources`` lies: the innermost enclosing list that has it."""
    names = {name for source in sources if source is not None for name in source.steps}
    found = []
    for name in sorted(names):
        hops = next((i for i, scope in enumerate(scopes) if name in scope), None)
        if hops is not None:
            found.append(Read(name, hops + 1))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------
# rows


def first_rows(plan: Plan, job_id: JobId, tenant: str, priority: int) -> list[StepRow]:
    """The rows a submit writes: the root, open, and its static children with the heads ready."""
    root = StepRow(job_id, ROOT, "", Kind.SEQUENCE, None, tenant=tenant, priority=priority, state=StepState.READY)
    root.queue = plan.queue_of("")
    return [root, *_open_sequence(plan, root)]


def open_static(plan: Plan, row: StepRow) -> list[StepRow]:
    """Opens a sequence or a parallel: sets ``row`` waiting and returns its children."""
    node = plan.nodes[row.ref]
    if node.kind is Kind.SEQUENCE:
        return _open_sequence(plan, row)
    members = [(name, ref, row.vars, None) for name, ref in zip(node.names, node.body, strict=True)]
    return _open_members(plan, row, members)


def open_items(plan: Plan, row: StepRow, items: Sequence[tuple[Stored, str | None]]) -> list[StepRow]:
    """Opens a for_each or delegate: one member an item, given as (all its variables, the agent if it names one)."""
    ref = plan.nodes[row.ref].body[0]
    return _open_members(plan, row, [(str(i), ref, values, agent) for i, (values, agent) in enumerate(items)])


def open_undo(plan: Plan, row: StepRow, members: Sequence[tuple[Member, Stored]]) -> list[StepRow]:
    """Opens an undoing composite: each member with its variables as they are stored."""
    rows = _open_members(plan, row, [(str(i), one.ref, values, None) for i, (one, values) in enumerate(members)])
    for kid, (one, _) in zip(rows, members, strict=True):
        kid.undoes = one.undoes
    return rows


def open_round(plan: Plan, row: StepRow, number: int, values: Stored) -> list[StepRow]:
    """Opens round ``number`` of a supervise."""
    row.width = number
    row.round = number
    row.state = StepState.WAITING
    one = _instance(plan, row, f"round-{number}", plan.nodes[row.ref].body[0], number - 1, values)
    return [one, *_activate(plan, one)]


def _open_members(
    plan: Plan, row: StepRow, members: Sequence[tuple[str, str, Stored | None, str | None]]
) -> list[StepRow]:
    row.width = len(members)
    row.state = StepState.WAITING
    out: list[StepRow] = []
    for seq, (name, ref, values, agent) in enumerate(members):
        member = _instance(plan, row, name, ref, seq, values, agent)
        out.append(member)
        if seq >= at_once(plan, row):
            member.held = True
        elif len(members) <= CHUNK:  # a wider fan-out is written in chunks, and only the last settle lets it go
            out.extend(_activate(plan, member))
    return out


def at_once(plan: Plan, row: StepRow) -> int:
    """How many members of the fan-out ``row`` may be out together."""
    cap = plan.nodes[row.ref].max_concurrency
    width = row.width or 0
    return width if cap is None else min(cap, width)


def _open_sequence(plan: Plan, row: StepRow) -> list[StepRow]:
    node = plan.nodes[row.ref]
    row.width = len(node.body)
    row.state = StepState.WAITING
    out: list[StepRow] = []
    for seq, (name, ref) in enumerate(zip(node.names, node.body, strict=True)):
        step = _instance(plan, row, name, ref, seq, row.vars)
        step.deps_left = len(plan.nodes[ref].needs)
        out.append(step)
        if not step.deps_left:
            out.extend(_activate(plan, step))
    return out


def _activate(plan: Plan, row: StepRow) -> list[StepRow]:
    """Makes a new row ready; a sequence without a condition opens at once, which saves its claim."""
    node = plan.nodes[row.ref]
    if node.kind is Kind.SEQUENCE and node.when is None:
        return _open_sequence(plan, row)
    row.state = StepState.READY
    return []


def _instance(
    plan: Plan,
    parent: StepRow,
    name: str,
    ref: str,
    seq: int,
    values: Stored | None,
    agent: str | None = None,
) -> StepRow:
    node = plan.nodes[ref]
    agent = agent or node.agent
    path: StepPath = child(parent.path, name)
    row = StepRow(parent.job_id, path, ref, node.kind, parent.path, seq, tenant=parent.tenant, priority=parent.priority)
    # Not from the beginning: what stood at this path before its scope was done again had epochs, fences and keys too.
    row.epoch, row.fence, row.generation = parent.epoch, parent.fence, parent.generation
    row.vars = values
    row.queue = plan.queue_of(ref, agent)
    if node.kind is Kind.AGENT and agent is not None:
        row.agent = agent
        row.limited = plan.agents[agent].metered
    return row
