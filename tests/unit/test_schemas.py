"""JSON Schema: what is found, what is refused, and that nothing is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.errors import DefinitionError
from orchestrator.domain.schemas import MAX_PROBLEMS, compile_schema, place_text

CLAUSES = {
    "type": "object",
    "required": ["clauses"],
    "properties": {"clauses": {"type": "array", "items": {"$ref": "#/$defs/clause"}}},
    "$defs": {"clause": {"type": "object", "properties": {"risk": {"enum": ["low", "high"]}}}},
}


def test_a_value_that_holds_has_no_problems() -> None:
    assert compile_schema(CLAUSES, "output_schema").problems({"clauses": [{"risk": "low"}]}) == []


def test_problems_name_the_place() -> None:
    schema = compile_schema(CLAUSES, "output_schema")
    assert schema.problems({}) == ['"clauses" is a required property']
    (problem,) = schema.problems({"clauses": [{"risk": "low"}, {"risk": "mid"}]})
    assert problem.startswith("clauses[1].risk: ")


def test_at_most_ten_problems_none_of_them_long() -> None:
    problems = compile_schema({"items": {"maxLength": 3}}, "s").problems(["x" * 10_000] * 50)
    assert len(problems) == MAX_PROBLEMS
    assert max(map(len, problems)) < 400


@pytest.mark.parametrize(
    ("schema", "place", "says"),
    [
        ({"type": "mapping"}, "s.type", "mapping"),
        ({"properties": {"a": {"minimum": "1"}}}, "s.properties.a.minimum", "not of type"),
        ({"allOf": [{"pattern": "["}]}, "s.allOf[0].pattern", "regex"),
        ({"pattern": "(?=a)b"}, "s.pattern", "regex"),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "s", "nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "s", "nothing is fetched"),
        ({"$ref": "#/$defs/none"}, "s", "leads nowhere"),
        ([], "s", "not a JSON Schema"),
    ],
)
def test_a_broken_schema_is_one_problem_at_its_place(schema: Any, place: str, says: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        compile_schema(schema, "s")
    (problem,) = refused.value.problems
    assert problem.path == place
    assert says in problem.message


def test_a_hopeless_pattern_is_linear_and_a_schema_may_hold_itself() -> None:
    assert compile_schema({"pattern": "^(a+)+$"}, "s").problems("a" * 20_000 + "b") != []
    value: Any = {}
    for _ in range(90):
        value = {"a": value}
    assert compile_schema({"properties": {"a": {"$ref": "#"}}, "type": "object"}, "s").problems(value) == []
    assert compile_schema({"$ref": "#"}, "s").problems(value) == []


def test_places() -> None:
    assert place_text(["clauses", 3, "title"]) == "clauses[3].title"
    assert place_text([0, "a"]) == "[0].a"
    assert place_text([]) == ""
