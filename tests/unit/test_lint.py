"""What keeps a well-formed workflow from running: each rule with what it refuses and what it lets pass."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import Problem
from orchestrator.domain.lint import MAX_PROBLEMS, check_workflow
from orchestrator.domain.step_order import order_of
from orchestrator.domain.workflow import ScriptedAgent, Workflow

AGENTS = {"a": {"kind": "scripted"}, "gun": {"kind": "scripted", "effect": "irreversible"}}


def check(*steps: dict[str, Any], **more: Any) -> list[Problem]:
    return check_workflow(Workflow.model_validate({"name": "w", "agents": AGENTS, "steps": list(steps), **more}))


def found(*steps: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in check(*steps, **more)]


def step(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "agent": "a", **more}


def reads(name: str) -> dict[str, Any]:
    return {"with": {"x": f'${{{{ steps["{name}"].y }}}}'}}


def test_a_list_reads_backwards_only() -> None:
    assert found(step("one"), step("two", **reads("one")), step("three", **reads("one"))) == []
    ((path, message),) = found(step("one", **reads("two")), step("two"))
    assert path == "steps[0].with.x"
    assert "move it up" in message
    ((_, message),) = found(step("one", **reads("one")))
    assert "its own output" in message


def test_a_graph_is_ordered_by_needs_alone() -> None:
    assert found(step("c", needs=["b"], **reads("a")), step("a"), step("b", needs=["a"])) == []
    ((path, message),) = found(step("a"), step("b", **reads("a")), step("c", needs=["b"]))
    assert path == "steps[1].with.x"
    assert "add 'a' to its needs" in message
    assert found(step("a"), step("b", needs=[]), output="${{ steps.a }} ${{ steps.b }}") == []


def test_needs_names_siblings_once_and_without_cycles() -> None:
    """B1: a plan with a cycle or an unknown name is refused before anything is stored."""
    problems = check(step("first"), step("b", needs=["firstt", "first", "first"]), {"agent": "a"})
    assert [(p.path, p.nearest) for p in problems] == [
        ("steps[1].needs[0]", "first"),
        ("steps[1].needs[2]", None),
        ("steps[2]", None),
    ]
    ((path, message),) = found(
        step("a", needs=["c"]), step("b", needs=["a"]), step("c", needs=["b"]), step("d", needs=["c"], **reads("a"))
    )
    assert path == "steps[0].needs"
    assert message.endswith("a → b → c → a")
    ((_, message),) = found(step("a", needs=["a"]))
    assert message.endswith("a → a")


def test_ids_are_needed_in_lists_and_unique_in_their_list() -> None:
    body = [step("x"), step("y", **reads("x"))]
    assert found({"id": "x", "for_each": "input.items", "do": body}, step("y", **reads("x"))) == []
    assert found({"id": "f", "for_each": "input.items", "do": {"agent": "a"}}) == []
    assert [path for path, _ in found(step("x"), step("x"))] == ["steps[1].id"]
    ((path, _),) = found({"id": "f", "for_each": "input.items", "do": {"agent": "a", "needs": ["f"]}})
    assert path == "steps[0].do.needs"


def test_a_body_reads_what_ended_before_its_composite_and_not_into_its_neighbours() -> None:
    fan = {"for_each": "steps.one.items", "as": "item", "do": [step("in", **reads("one")), step("up", **reads("in"))]}
    assert found(step("one"), {"id": "fan", **fan}, step("end", **reads("fan"))) == []
    ((path, _),) = found(step("one"), {"id": "fan", **fan}, step("end", **reads("in")))
    assert path == "steps[2].with.x"
    ((path, message),) = found({"id": "p", "parallel": {"l": {"agent": "a"}, "r": {"agent": "a", **reads("l")}}})
    assert path == "steps[0].parallel.r.with.x"
    assert "no step 'l'" in message
    ((path, message),) = found({"id": "p", "parallel": {"l": {"agent": "a", **reads("p")}}})
    assert "its own output" in message


def test_of_two_steps_with_one_id_the_inner_is_meant_even_when_it_runs_later() -> None:
    fan = {"id": "fan", "for_each": "input.items", "do": [step("b", **reads("one")), step("one")]}
    ((path, message),) = found(step("one"), fan)
    assert path == "steps[1].do[0].with.x"
    assert "need not have ended" in message


def test_names_in_scope() -> None:
    here = {"id": "f", "for_each": "${{ input.items }}", "as": "clause"}
    assert found({**here, "do": {"agent": "a", "when": "clause.ok", "with": "${{ [clause, job.id] }}"}}) == []
    for bad, path in [
        (step("s", when="clause.ok"), "steps[0].when"),
        ({**here, "when": "clause.ok", "do": {"agent": "a"}}, "steps[0].when"),
        ({**here, "for_each": "clause.items", "do": {"agent": "a"}}, "steps[0].for_each"),
        (step("s", when="output.ok"), "steps[0].when"),
        (step("s", checks=["review.ok"]), "steps[0].checks[0]"),
    ]:
        ((got, message),) = found(bad)
        assert got == path
        assert "only input, job and steps" in message or "only input, job, output and steps" in message
    assert found(step("s", checks=["output.n > input.n", "size(output) > 0"])) == []
    nearest = check(step("s", when="inptu.ok"))[0].nearest
    assert nearest == "input"
    ((path, _),) = found(step("s"), output="${{ item }}")
    assert path == "output"


def test_an_id_with_a_hyphen_written_with_a_dot_is_explained() -> None:
    problems = check(step("second-review"), step("b", when="steps.second-review.ok"))
    assert any('steps["second-review"]' in p.message and p.nearest == "second-review" for p in problems)


@pytest.mark.parametrize("name", ["input", "steps", "job", "output", "review", "for", "in", "int", "a-b"])
def test_loop_variables_that_cannot_be_used_are_refused(name: str) -> None:
    ((path, message),) = found({"id": "f", "for_each": "input", "as": name, "do": {"agent": "a"}})
    assert path == "steps[0].as"
    assert repr(name) in message


def test_every_expression_is_compiled() -> None:
    chat = {"kind": "chat", "model": "m", "prompt": "${{ input. }}"}
    paths = [
        path
        for path, _ in found(
            step("s", when="1 +", checks=["ok", "("], **{"with": [{"k": "${{ }}"}]}),
            {"id": "f", "for_each": "a ${{ input }}", "do": {"agent": "a"}},
            {"id": "v", "supervise": {"supervisor": "a", "workers": ["a"], "rounds": 1, "until": "steps"}},
            agents={**AGENTS, "c": chat},
            output={"${{ input }}": 1, "b": "${{ input"},
        )
        if path != "steps[0].checks[0]"
    ]
    assert paths == [
        "agents.c.prompt",
        "steps[0].when",
        "steps[0].with[0].k",
        "steps[0].checks[1]",
        "steps[1].for_each",
        "steps[2].supervise.until",
        "output.${{ input }}",
        "output.b",
    ]


def test_a_chat_prompt_sees_its_input_only() -> None:
    chat = {"kind": "chat", "model": "m", "prompt": "${{ steps.s }} ${{ input.text }}"}
    ((path, message),) = found(step("s"), agents={**AGENTS, "c": chat})
    assert path == "agents.c.prompt"
    assert message == "there is no 'steps' here, only input"


def test_a_script_sees_its_input_only() -> None:
    scripted = {"kind": "scripted", "script": [{"output": {"n": "${{ input.n }}"}}, {"output": ["${{ job.id }}"]}]}
    ((path, _),) = found(step("s"), agents={**AGENTS, "c": scripted})
    assert path == "agents.c.script[1].output[0]"


def test_a_supervisor_sees_its_rounds() -> None:
    rule = {"supervisor": "a", "workers": ["a"], "reviewer": "a", "rounds": 2}
    until = "review.score >= 0.8 && size(results) > 0 && round < 3 && steps.one.ok && input.ok"
    assert found(step("one"), {"id": "v", "supervise": {**rule, "until": until}}) == []
    ((path, _message),) = found({"id": "v", "supervise": {**rule, "until": "revieww.score > 1"}})
    assert path == "steps[0].supervise.until"
    rule = {"supervisor": "b", "workers": ["a", "aa"], "reviewer": "gun", "rounds": 2, "until": "true"}
    paths = [path for path, _ in found({"id": "v", "supervise": rule})]
    assert paths == ["steps[0].supervise.supervisor", "steps[0].supervise.workers[1]", "steps[0].supervise.reviewer"]


def test_irreversible_effects_need_a_stated_gate() -> None:
    for risky in (step("s", effect="irreversible"), {"id": "s", "agent": "gun"}, step("s", agent="gun", effect="read")):
        ((path, message),) = found(risky)
        assert path == "steps[0]"
        assert "gate: none" in message
        assert found({**risky, "gate": "none"}) == []


def test_agents_are_local_registered_or_unknown() -> None:
    workflow = Workflow.model_validate({"name": "w", "steps": [{"id": "s", "agent": "summariser"}]})
    assert [p.path for p in check_workflow(workflow)] == ["steps[0].agent"]
    registered = {"summarizer": ScriptedAgent(kind="scripted")}
    assert check_workflow(workflow, registered)[0].nearest == "summarizer"
    assert check_workflow(workflow, {"summariser": registered["summarizer"]}) == []
    assert check_workflow(workflow, None) == []


def test_every_schema_is_compiled() -> None:
    bad = {"type": "mapping"}
    agent = {"kind": "scripted", "input_schema": bad, "output_schema": bad}
    paths = [p for p, _ in found(step("s", output_schema=bad), input_schema=bad, agents={**AGENTS, "b": agent})]
    assert paths == [
        "input_schema.type",
        "agents.b.input_schema.type",
        "agents.b.output_schema.type",
        "steps[0].output_schema.type",
    ]


def nested(levels: int) -> dict[str, Any]:
    body: dict[str, Any] = {"agent": "a"}
    for _ in range(levels - 1):
        body = {"for_each": "input", "do": body}
    return {"id": "top", **body}


def test_sizes_are_capped() -> None:
    assert found(nested(16)) == []
    ((path, message),) = found(nested(17))
    assert path == "steps[0]" + ".do" * 16
    assert "deeper than 16" in message
    ((_, message),) = found(*[step(f"s{i}") for i in range(10_001)])
    assert "more than 10000 steps" in message
    assert len(found(*[step(f"s{i}", when="nope") for i in range(500)])) == MAX_PROBLEMS


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.frozensets(st.integers(0, n - 1)), min_size=n, max_size=n)))
def test_order_agrees_with_a_plain_search(graph: list[frozenset[int]]) -> None:
    def before(i: int) -> set[int]:
        seen: set[int] = set()
        waiting = list(graph[i])
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting.extend(graph[one])
        return seen

    names = [f"s{i}" for i in range(len(graph))]
    order = order_of(names, [[f"s{k}" for k in need] for need in graph])
    cyclic = {i for i in range(len(graph)) if i in before(i)}
    assert bool(order.cycle) == bool(cyclic)
    if order.cycle:
        ring = [order.places[name] for name in order.cycle]
        assert ring[0] == ring[-1]
        assert all(one in graph[after] for one, after in itertools.pairwise(ring))
    for i in range(len(graph)):
        if not before(i) & cyclic and i not in cyclic:
            assert {order.places[name] for name in order.before(i)} == before(i)
