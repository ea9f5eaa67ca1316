"""Expressions and templates: what they name, what they give, and that nothing bad in them ends the process."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
import threading
from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import cel_values
from orchestrator.domain.expressions import Expression, ExpressionError, ExpressionFailed, Template, condition

SCOPE: dict[str, Any] = {
    "input": {"n": 1, "f": 2.5, "s": "x", "list": [1, 2, 3], "none": None, "obj": {"z": 1, "a": 2}, "big": 2**63},
    "steps": {"a": {"x": 1}, "second-review": [{"risk": "high"}]},
    "job": {"id": "j1"},
}


def value(source: str, **more: Any) -> Any:
    return Expression.compile(source).evaluate({**SCOPE, **more})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("input.n + 1", 2),
        ("input.f", 2.5),
        ("1.0", 1.0),
        ("7 / 2", 3),
        ("1u", 1),
        ("input.none", None),
        ("input.big", 2**63),
        ("input.list.map(x, x * 2)", [2, 4, 6]),
        ('steps["second-review"].exists(r, r.risk == "high")', True),
        ("steps['second-review'][0].risk", "high"),
        ('{"b": {"c": 1}, "a": [input.s]}', {"a": ["x"], "b": {"c": 1}}),
        ("has(steps.a.y)", False),
        ("type(input.n) == int", True),
        ("input.list[2]", 3),
    ],
)
def test_values_keep_their_json_type(source: str, expected: Any) -> None:
    got = value(source)
    assert got == expected
    assert type(got) is type(expected)


def test_a_bare_path_keeps_the_order_of_keys_and_cel_built_objects_are_sorted() -> None:
    assert list(value("input.obj")) == ["z", "a"]
    assert list(value('{"z": 1, "b": 2, "a": 3}')) == ["a", "b", "z"]


@pytest.mark.parametrize(
    ("source", "names", "steps"),
    [
        ("input.a + job.id", {"input", "job"}, set()),
        ("steps.a.b > steps['b-c'].n", {"steps"}, {"a", "b-c"}),
        ('"steps.x" + input.s // steps.y', {"input"}, set()),
        ("r'a\\' + input.s", {"input"}, set()),
        ("'''it's steps.x''' + input.s", {"input"}, set()),
        ("input.list.map(x, x + y)", {"input", "y"}, set()),
        ("input.list.map(x, x) == x", {"input", "x"}, set()),
        ("input.map(input, input)", {"input"}, set()),
        ("[1].map(x, [x].filter(y, y > x && z))", {"z"}, set()),
        ("input.size() + size(job)", {"input", "job"}, set()),
        ("a.map(map, map)", {"a"}, set()),
        ("steps.a.steps.b", {"steps"}, {"a"}),
        ("input.steps[0]", {"input"}, set()),
    ],
)
def test_names_and_steps_are_found(source: str, names: set[str], steps: set[str]) -> None:
    found = Expression.compile(source)
    assert found.names == names
    assert found.steps == steps


@pytest.mark.parametrize("source", ["steps", "steps[input.s]", "'a' in steps", "size(steps)", "(steps).a", "steps[0]"])
def test_a_dynamic_read_of_steps_is_refused(source: str) -> None:
    with pytest.raises(ExpressionError, match="name the step"):
        Expression.compile(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "not CEL"),
        ("1 +", "column 4"),
        ("a and b", "write '&&' for 'and'"),
        ("a = 1", "write '=='"),
        ("input.s.starts_with('x')", "Did you mean 'startsWith'"),
        ("Point{x: 1}", "write a map"),
        (".input", "without the dot"),
        ("'" + "x" * 4100 + "'", "longer than 4096 bytes"),
        ("(" * 33 + "1" + ")" * 33, "deeper than 32"),
        ("[" * 2000 + "]" * 2000, "deeper than 32"),
        ("1" + "+1" * 257, "more than 256 operators"),
    ],
)
def test_what_cannot_be_compiled_says_why(source: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=says.replace("(", r"\(")):
        Expression.compile(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("input.nope", "no field 'nope' in input, which has n, f, s"),
        ("input.nope > 1", "no field 'nope'"),
        ("input.list[7]", "no item 7 in input.list, which has 3"),
        ("input.n.x", "input.n is 1: it has no field 'x'"),
        ("input.f + 1", "input.f is 2.5"),
        ("input.n * 1.0", "double"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "overflow"),
        ("int(input.s)", 'input.s is "x"'),
        ("input.s.matches('[')", "regex"),
        ("1.0 / 0.0", "inf"),
        ("[double('nan')]", "nan"),
        ("timestamp('2024-01-01T00:00:00Z')", "a timestamp"),
        ("duration('1s')", "a duration"),
        ("b'abc'", "bytes"),
        ("{1: 2}", "keys are strings"),
        ('"\\u0000"', "NUL"),
        ("item.a", "no 'item' here"),
        ("steps.b.x + 1", "step 'b' has no output"),
    ],
)
def test_what_fails_at_run_time_names_the_expression_and_the_value(source: str, says: str) -> None:
    with pytest.raises(ExpressionFailed) as failed:
        value(source)
    assert says in failed.value.message
    assert source in failed.value.message
    assert failed.value.source == source


def test_a_condition_must_be_true_or_false() -> None:
    assert condition("input.n == 1").evaluate(SCOPE) is True
    assert condition(" ${{ input.n > 1 }} ").evaluate(SCOPE) is False
    for source in ("input.n", "input.s"):
        with pytest.raises(ExpressionFailed, match="must be true or false, got"):
            condition(source).evaluate(SCOPE)
    for source in ("${{ a }} && ${{ b }}", "${{ a", "${{ a }} b"):
        with pytest.raises(ExpressionError, match="one expression"):
            condition(source)


def test_a_panic_in_the_engine_is_a_failed_expression_and_a_cancellation_is_not_swallowed() -> None:
    class PanicException(BaseException):
        pass

    def panic() -> None:
        raise PanicException("index out of bounds")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(cel_values.CelError, match="index out of bounds"):
        cel_values.guarded(panic)
    with pytest.raises(KeyboardInterrupt):
        cel_values.guarded(interrupt)


@pytest.mark.parametrize(
    "source",
    ["1" + "+1" * 256, "true" + "&&true" * 256, "input" + ".a" * 256, "!" * 256 + "true", "(" * 32 + "1" + ")" * 32],
)
def test_the_deepest_allowed_expression_fits_a_small_stack(source: str) -> None:
    """What overflows the stack ends the process: so this runs in a process of its own, on a 512 KiB stack."""
    program = f"""
import threading
from orchestrator.domain.expressions import Expression, ExpressionFailed
def run():
    try: Expression.compile({source!r}).evaluate({{"input": {{}}}})
    except ExpressionFailed: pass
    print("survived")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=run); thread.start(); thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "survived", done.stderr


def test_loops_that_would_run_for_minutes_or_fill_memory_are_refused_before_they_run() -> None:
    many = {"input": {"list": list(range(2000))}}
    nested = "input.list.all(a, input.list.all(b, input.list.all(c, a + b + c >= 0)))"
    doubling = '["xxxxxxxx"]' + ".map(a, a + a)" * 40
    for source, scope in [(nested, many), (doubling, {})]:
        with pytest.raises(ExpressionFailed, match="cost too much"):
            Expression.compile(source).evaluate(scope)
    assert Expression.compile("input.list.exists(a, a == 1999)").evaluate(many) is True
    long_text = {"input": {"list": [{"text": "x" * 1_000_000}]}}
    assert Expression.compile("input.list.exists(a, a.text.size() > 5)").evaluate(long_text) is True


def test_a_hopeless_regular_expression_is_linear() -> None:
    assert value("input.long.matches('^(a+)+$')", input={"long": "a" * 20_000 + "b"}) is False


def test_one_expression_serves_many_threads() -> None:
    expression = Expression.compile("input.list.map(x, x * input.n)")
    wrong: list[Any] = []

    def run(n: int) -> None:
        answers = [expression.evaluate({"input": {"list": [1, 2, 3], "n": n}}) for _ in range(200)]
        wrong.extend(answer for answer in answers if answer != [n, 2 * n, 3 * n])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${{ input.n }}", 1),
        ("${{input.obj}}", {"z": 1, "a": 2}),
        ("n = ${{ input.n }}, s = ${{ input.s }}", "n = 1, s = x"),
        ("${{ input.none }} ${{ input.obj }} ${{ true }}", 'null {"z":1,"a":2} true'),
        ("${{ input.n }} ", "1 "),
        ("$${{ input.n }}", "${{ input.n }}"),
        ("$${{ a }} ${{ input.n }}", "${{ a }} 1"),
        ('${{ {"a": {"b": 1}} }}', {"a": {"b": 1}}),
        ("${{ '}}' + input.s }}!", "}}x!"),
        ({"a": ["${{ input.n }}", 2], "b": "c"}, {"a": [1, 2], "b": "c"}),
        ({"a": {"b": None}}, {"a": {"b": None}}),
    ],
)
def test_templates(template: Any, expected: Any) -> None:
    assert Template.compile(template).evaluate(SCOPE) == expected


def test_a_template_without_expressions_is_constant() -> None:
    compiled = Template.compile({"a": [1, "b", "$${{ c }}"]})
    assert compiled.constant
    assert compiled.names == frozenset()
    assert compiled.evaluate({}) == {"a": [1, "b", "${{ c }}"]}
    used = Template.compile({"a": "${{ steps.x }}", "b": "${{ item }}"})
    assert not used.constant
    assert used.names == {"steps", "item"}
    assert used.steps == {"x"}


@pytest.mark.parametrize("template", ["${{ input", "${{ ( }}", "${{ }}", {"${{ a }}": 1}, ["${{ a } }}"]])
def test_broken_templates_are_refused(template: Any) -> None:
    with pytest.raises(ExpressionError):
        Template.compile(template)


# -- any text, any value

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "z"]), inner, max_size=3),
    max_leaves=12,
)
TOKENS = st.sampled_from(
    "input steps x y . . a b ( ) [ ] { } , : ? 'a' \"b\" r'\\' 1 2.5 1u + - ! && || == < in map filter exists size has "
    "true null //c\n '''q''' matches string .map(x, steps.a ['a'] ${{ }} timestamp('x') in.a".split(" ")
)


@given(st.lists(TOKENS, min_size=1, max_size=12), st.sampled_from(["", " "]), JSON)
def test_nothing_but_our_errors_leaves_an_expression(parts: list[str], glue: str, data: Any) -> None:
    source = glue.join(parts)
    scope = {"input": data, "steps": {"a": data}, "x": data, "y": 1, "a": data, "b": [data]}
    before = copy.deepcopy(scope)
    try:
        compiled = Expression.compile(source)
        result = compiled.evaluate(scope)
    except (ExpressionError, ExpressionFailed):
        pass
    else:
        json.dumps(result, allow_nan=False)
        assert compiled.names <= scope.keys()
    assert scope == before


@given(st.text(max_size=40))
def test_nothing_but_our_errors_leaves_a_template(text: str) -> None:
    for template in (text, "${{" + text + "}}", "a ${{ " + text):
        with contextlib.suppress(ExpressionError, ExpressionFailed):
            Template.compile(template).evaluate({})


@given(JSON)
def test_a_value_comes_through_cel_as_it_went_in(data: Any) -> None:
    wrapped = Expression.compile("[input][0]").evaluate({"input": data})
    assert wrapped == data
    assert Expression.compile("input").evaluate({"input": data}) is data


@given(st.lists(st.sampled_from([".a", ".b", "[0]", "['a']", "[1]"]), max_size=3), JSON)
def test_the_short_cut_for_paths_finds_what_cel_finds(keys: list[str], data: Any) -> None:
    source = "input" + "".join(keys)
    try:
        expected = cel.compile(source).execute({"input": data})
    except (KeyError, IndexError, TypeError, RuntimeError):
        with pytest.raises(ExpressionFailed):
            Expression.compile(source).evaluate({"input": data})
    else:
        assert Expression.compile(source).evaluate({"input": data}) == expected
