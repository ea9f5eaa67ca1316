"""The three shapes of the crash matrix, with the output each must have whatever died on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Variant = Literal["plain", "limited", "slow", "permanent", "transient", "doubt"]
NAMES = ("sequence", "fan-out", "supervisor")
WIDTH = 6


@dataclass(frozen=True, slots=True)
class Shape:
    workflow: dict[str, Any]
    input: Any
    output: Any
    #: Agent steps of one clean run.
    calls: int


def shape(
    name: str, ledger: Path, variant: Variant = "plain", *, delay: float = 0.02, slow: float = 1.6, retry: str = "400ms"
) -> Shape:
    """``variant``: what the step in the middle that gets ``{"n": 1}`` does; the output is the same.

    ``slow`` is how long it takes then, in seconds; ``permanent`` and ``transient`` are how it fails under its first
    key, retried after ``retry``. ``limited``: every agent has a limit it never meets, so that
    each of its steps is published by the feed. ``doubt``: nobody knows whether its first call took effect, and its
    agent has an effect and ignores the key.
    """
    odd: dict[str, Any] = {"slow": slow} if variant == "slow" else {}
    if variant in ("permanent", "transient", "doubt"):
        odd["first"] = variant
    rule = {"attempts": 4, "initial": retry, "jitter": "none"}
    agents = {
        "work": _agent("work", ledger, delay=delay),
        "odd": {**_agent("work", ledger, delay=delay, **odd), "retry": rule},
        "spread": _agent("spread", ledger, width=WIDTH),
        "total": _agent("total", ledger),
        "lead": _agent("lead", ledger),
    }
    if variant == "doubt":
        agents["odd"] |= {"effect": "reversible", "honours_key": False}
    if variant == "limited":
        agents = {agent: {**rest, "limits": {"concurrency": 100}} for agent, rest in agents.items()}
    match name:
        case "sequence":
            return _sequence(agents)
        case "fan-out":
            return _fan_out(agents)
        case "supervisor":
            return _supervisor(agents)
        case _:
            raise ValueError(name)


def _agent(function: str, ledger: Path, **config: Any) -> dict[str, Any]:
    target = f"tests.support.ledger:{function}"
    return {"kind": "python", "target": target, "config": {"ledger": str(ledger), **config}}


def _sequence(agents: dict[str, Any]) -> Shape:
    names = ["work", "odd", "work", "work"]
    steps = [{"id": f"s{number}", "agent": agent} for number, agent in enumerate(names)]
    workflow = {"name": "sequence", "agents": agents, "steps": steps, "output": {"n": "${{ steps.s3.n }}"}}
    return Shape(workflow, {"n": 0}, {"n": 4}, 4)


def _fan_out(agents: dict[str, Any]) -> Shape:
    member = {"agent": "odd", "with": "${{ item }}"}
    steps = [
        {"id": "spread", "agent": "spread"},
        {"id": "each", "for_each": "${{ steps.spread }}", "do": member, "max_concurrency": 3},
        {"id": "sum", "agent": "total"},
    ]
    workflow = {"name": "fan-out", "agents": agents, "steps": steps, "output": {"n": "${{ steps.sum.n }}"}}
    return Shape(workflow, {"n": 0}, {"n": sum(range(1, WIDTH + 1))}, WIDTH + 2)


def _supervisor(agents: dict[str, Any]) -> Shape:
    rule = {"supervisor": "lead", "workers": ["work", "odd"], "rounds": 3, "until": "review.score >= 2"}
    workflow = {
        "name": "supervisor",
        "agents": agents,
        "steps": [{"id": "loop", "supervise": rule, "with": {"goal": 1}}],
        "output": {"rounds": "${{ steps.loop.rounds }}", "result": "${{ steps.loop.result }}"},
    }
    return Shape(workflow, None, {"rounds": 2, "result": [{"n": 3}, {"n": 3}]}, 8)
