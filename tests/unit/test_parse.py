"""Workflow files: what they may look like, and that every mistake is named with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import DefinitionError, Problem
from orchestrator.domain.outcome import FailureClass
from orchestrator.domain.parse import MAX_PROBLEMS, parse_workflow, workflow_json_schema
from orchestrator.domain.workflow import AgentStep, ForEachStep, ScriptedAgent, SuperviseStep

REVIEW = """\
name: contract-review
input_schema: {type: object, required: [contract], properties: {contract: {type: string}}}
deadline: 2h
agents:                                   # local to the file
  extractor: {kind: python, target: "contract_review.agents:extract_clauses"}
  summarizer: {kind: chat, model: m, prompt: "Summarise: ${{ input.text }}", price: {input: 0.25, output: 2.0}}
  classifier: &same {kind: scripted}
  counsel: *same
steps:
  - id: extract
    agent: extractor
    with: {text: "${{ input.contract }}"}
    output_schema: {type: object, required: [clauses]}
    checks: ["size(output.clauses) > 0"]
    retry: {attempts: 4, initial: 1s, max: 60s, jitter: full, on: [transient, rate_limited, invalid_output]}
    timeout: {attempt: 60s, total: 10m, progress: 20s}
  - id: assess
    for_each: "${{ steps.extract.clauses }}"
    as: clause
    do: {agent: classifier, with: {clause: "${{ clause }}"}}
    max_concurrency: 50
    join: {collect: true, tolerate: 10%}
  - id: policies
    parallel: {export: {agent: classifier}, privacy: [{id: one, agent: counsel}, {id: two, agent: counsel}]}
  - id: redraft
    supervise: {supervisor: counsel, workers: [summarizer], rounds: 3, until: "review.score >= 0.8"}
  - id: signoff
    when: steps.assess.exists(r, r.risk == 'high')
    agent: counsel
output: "${{ steps.redraft }}"
"""
SMALL = "name: w\nagents: {a: {kind: scripted}}\nsteps:\n  - {id: s, agent: a, with: %s}\n"


def problems(text: str, **known: Any) -> list[Problem]:
    with pytest.raises(DefinitionError) as refused:
        parse_workflow(text, **known)
    return refused.value.problems


def problem(text: str) -> Problem:
    (only,) = problems(text)
    return only


def refusals(text: str, **known: Any) -> list[Problem]:
    """The problems, or none: anything else that is raised fails the test."""
    try:
        parse_workflow(text, **known)
    except DefinitionError as error:
        return error.problems
    return []


def given_with(text: str) -> Any:
    step = parse_workflow(SMALL % text).steps[0]
    assert isinstance(step, AgentStep)
    return step.with_


def test_a_whole_file() -> None:
    workflow = parse_workflow(REVIEW, file="review.yaml", known_agents={})
    assert workflow.deadline == 7200
    extract, assess, _, redraft, signoff = workflow.steps
    assert isinstance(extract, AgentStep)
    assert extract.retry is not None
    assert extract.retry.on == (FailureClass.TRANSIENT, FailureClass.RATE_LIMITED, FailureClass.INVALID_OUTPUT)
    assert extract.timeout is not None
    assert extract.timeout.total == 600
    assert isinstance(assess, ForEachStep)
    assert assess.as_ == "clause"
    assert isinstance(redraft, SuperviseStep)
    assert signoff.when == "steps.assess.exists(r, r.risk == 'high')"
    assert workflow.agents["counsel"] == workflow.agents["classifier"]


def test_the_same_file_as_json_gives_the_same_workflow() -> None:
    """A15: YAML and JSON say the same, and read back alike."""
    as_json = json.dumps(yaml.safe_load(REVIEW.replace(" on:", ' "on":')))
    assert parse_workflow(as_json) == parse_workflow(REVIEW)
    assert parse_workflow(json.dumps(json.loads(as_json), indent="\t")) == parse_workflow(REVIEW)


def test_the_published_schema_is_valid_and_takes_the_file() -> None:
    schema = workflow_json_schema()
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    validator = jsonschema_rs.Draft202012Validator(schema, offline=True)
    value = yaml.safe_load(REVIEW.replace(" on:", ' "on":'))
    assert [error.message for error in validator.iter_errors(value)] == []
    value["steps"][0]["agnt"] = "x"
    assert not validator.is_valid(value)
    assert schema["$defs"]["Retry"]["properties"]["max"]["default"] == "60s"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{on: yes, off: no, y: n}", {"on": "yes", "off": "no", "y": "n"}),
        ("[true, false, True, FALSE]", [True, False, "True", "FALSE"]),
        ("[null, ~, '', 'null']", [None, None, "", "null"]),
        ("[1, -1, +1, 007, 0x1f, 0o7, 1_000, 1:30]", [1, -1, 1, "007", "0x1f", "0o7", "1_000", "1:30"]),
        ("[1.5, 1e3, .5, .inf, .nan]", [1.5, 1000.0, ".5", ".inf", ".nan"]),
        ("[2024-01-01, 'true', !!str 5]", ["2024-01-01", "true", "5"]),
        ("{1: a, true: b, null: c}", {"1": "a", "true": "b", "null": "c"}),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("[&x {a: 1}, *x]", [{"a": 1}, {"a": 1}]),
        ('"\\U0001F600"', "😀"),
    ],
)
def test_yaml_has_no_traps(text: str, value: Any) -> None:
    got = given_with(text)
    assert got == value
    assert json.dumps(got) == json.dumps(value)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "empty"),
        ("just words", 1, "a map with name and steps"),
        ("[1]", 1, "a map with name and steps"),
        ("name: w\nname: v", 2, "'name' is repeated"),
        ('{"name": "w",\n "name": "v"}', 2, "'name' is repeated"),
        ("name: w\n\tsteps: []", 2, "not YAML"),
        ("name: w\n---\nname: v", 2, "second document"),
        ("a: !!python/object/apply:os.system [x]", 1, "tags are not supported"),
        ("a: *b", 1, "no anchor &b"),
        ("a: &a [*a]", 1, "no anchor &a"),
        ("? [a]\n: b", 1, "a key must be"),
        ("a: 99999999999999999999", 1, "64 bits"),
        ("a: 1e999", 1, "larger than any number"),
        ('a: "\\0"', 1, "NUL"),
        ("a: \ud800", None, "surrogate"),
        ("[" * 1000, 1, "deeper than 64"),
        ("- " * 1000 + "a", 1, "deeper than 64"),
        ('{"a":' * 1000 + "1" + "}" * 1000, 1, "deeper than 64"),
        ("a: " + "x" * 1024 * 1024, None, "the limit is 1048576"),
        ("[" + "1," * 100_001 + "1]", 1, "more than 100000 values"),
    ],
)
def test_text_that_cannot_be_read(text: str, line: int | None, says: str) -> None:
    found = problem(text)
    assert says in found.message
    assert found.line == line


def test_a_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "with its aliases" in problem("\n".join(lines)).message
    chain = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 80)]
    assert "with its aliases nested deeper" in problem("\n".join(chain)).message


BROKEN = """\
name: contract review
deadline: 2
steps:
  - id: extract
    agnt: clause-extractor
  - id: assess
    agent: x
    withx: 1
    retry: {attempts: 0, jiter: full, on: [transientt]}
  - id: both
    for_each: steps.x
    parallel: {}
    do: [{id: y, agent: 5}]
  - 7
  - id: cut
    supervise: {supervisor: x, workers: [], rounds: 101}
  - {id: "no good", agent: x}
  - {id: z, parallel: {"a b": {agent: x}, ok: {agent: x, need: []}}}
agents:
  a: {kind: pythn}
  b: {}
  c: {kind: python, target: x, limits: {rate: "5"}}
"""


def test_every_problem_is_found_with_line_path_and_nearest_word() -> None:
    found = problems(BROKEN)
    assert [(p.line, p.path, p.nearest) for p in found] == [
        (1, "name", None),
        (2, "deadline", None),
        (4, "steps[0]", "agent"),
        (8, "steps[1].withx", "with"),
        (9, "steps[1].retry.attempts", None),
        (9, "steps[1].retry.jiter", "jitter"),
        (9, "steps[1].retry.on[0]", "transient"),
        (12, "steps[2].parallel", None),
        (13, "steps[2].do[0].agent", None),
        (14, "steps[3]", None),
        (16, "steps[4].supervise.until", None),
        (16, "steps[4].supervise.workers", None),
        (16, "steps[4].supervise.rounds", None),
        (17, "steps[5].id", None),
        (18, "steps[6].parallel.a b", None),
        (18, "steps[6].parallel.ok.need", "needs"),
        (20, "agents.a", "python"),
        (21, "agents.b", None),
        (22, "agents.c.target", None),
        (22, "agents.c.limits.rate", None),
    ]
    by_path = {p.path: p.message for p in found}
    assert "250ms, 30s" in by_path["deadline"]
    assert "cannot have both 'for_each' and 'parallel'" in by_path["steps[2].parallel"]
    assert by_path["steps[4].supervise.until"] == "'until' is missing"
    assert "100/m" in by_path["agents.c.limits.rate"]
    assert found[3].column == 5


def test_the_error_reads_well() -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_workflow("name: w\nsteps:\n  - {id: a, agnet: b}\n", file="w.yaml")
    text = str(refused.value)
    assert text == (
        "w.yaml: line 3, at steps[0]: a step has one of agent, for_each, parallel, supervise Did you mean 'agent'?"
    )


def test_no_more_than_twenty_problems_are_told() -> None:
    text = "name: w\nsteps:\n" + "".join(f"  - {{id: s{i}, agent: a, foo: 1}}\n" for i in range(5000))
    found = problems(text)
    assert len(found) == MAX_PROBLEMS
    assert "more problems" in found[-1].message


def test_what_the_checks_find_has_its_line_too() -> None:
    text = SMALL % '{deep: [1, {a: "${{ inptu.x }}"}]}'
    found = problem(text)
    assert (found.line, found.path, found.nearest) == (4, "steps[0].with.deep[1].a", "input")


def test_unknown_agents_are_refused_only_where_the_known_ones_are_known() -> None:
    text = "name: w\nsteps: [{id: s, agent: summariser}]"
    assert parse_workflow(text).steps[0].id == "s"
    (found,) = problems(text, known_agents={"summarizer": ScriptedAgent(kind="scripted")})
    assert found.nearest == "summarizer"
    assert found.path == "steps[0].agent"


def test_json_with_emoji_escapes_and_a_mistake_still_names_the_path() -> None:
    text = '{"name": "w", "description": "\\ud83d\\ude00", "steps": [{"id": "s", "agent": 5}]}'
    assert problem(text).path == "steps[0].agent"


@given(st.text(max_size=80) | st.text(st.sampled_from("-[]{}:,&*!|>'\"%#? \n\tabsteps0123"), max_size=80))
def test_any_text_is_a_workflow_or_a_definition_error(text: str) -> None:
    for source in (text, "name: w\nsteps:\n  - " + text):
        assert all(p.message for p in refusals(source))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["a", "30s", "${{ input }}", "x.y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "name steps agents id agent for_each do parallel supervise with retry timeout join on needs when kind "
                "supervisor workers rounds until tolerate attempts as checks output_schema type".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_shape_is_a_workflow_or_a_definition_error_with_a_place(steps: Any, agents: Any, output: Any) -> None:
    text = json.dumps({"name": "w", "steps": steps, "agents": agents, "output": output})
    found = refusals(text, known_agents={})
    assert all(p.line is not None or "\\ud" in text or "more problems" in p.message for p in found)


def test_the_examples_of_the_reference_are_workflows() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/workflow-language.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [parse_workflow(example, known_agents={}).name for example in examples] == [
        "contract-review",
        "graph",
        "fallbacks",
        "booking",
    ]
