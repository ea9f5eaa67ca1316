"""JSON in and out: every promise of the module, on the fast way and on the slow one."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from orchestrator.domain.json_values import NotJson, canonical, digest, dumps, loads, normal

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=30,
)


class Colour(enum.Enum):
    RED = "red"


class Model(BaseModel):
    a: int
    when: dt.date


@dataclasses.dataclass
class Point:
    x: int
    tags: tuple[str, ...]


@given(JSON)
def test_what_goes_out_comes_back_and_python_reads_it_alike(value: Any) -> None:
    text = dumps(value)
    assert loads(text) == value
    assert json.loads(text) == value
    assert normal(value) == value
    assert loads(canonical(value)) == value


@given(JSON, st.randoms(use_true_random=False))
def test_canonical_text_does_not_depend_on_the_order_of_keys(value: Any, random: Any) -> None:
    def shuffled(item: Any) -> Any:
        if isinstance(item, dict):
            keys = list(item)
            random.shuffle(keys)
            return {key: shuffled(item[key]) for key in keys}
        return [shuffled(one) for one in item] if isinstance(item, list) else item

    assert canonical(shuffled(value)) == canonical(value)
    assert digest(shuffled(value)) == digest(value)


def test_dumps_keeps_the_order_of_keys() -> None:
    assert dumps({"b": 1, "a": [None, 1.0, "é"]}) == '{"b":1,"a":[null,1.0,"é"]}'
    assert canonical({"b": 1, "a": 2}) == '{"a":2,"b":1}'
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Model(a=1, when=dt.date(2024, 1, 2)), '{"a":1,"when":"2024-01-02"}'),
        ({"p": [Point(1, ("a", "b"))]}, '{"p":[{"x":1,"tags":["a","b"]}]}'),
        ((1, (None,)), "[1,[null]]"),
        (Colour.RED, '"red"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (True, "true"),
    ],
)
def test_what_agents_answer_is_turned_into_json(value: Any, text: str) -> None:
    assert dumps(value) == text
    assert canonical([value, None, "\\u0000"])  # the slow way takes it too


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path", "says"),
    [
        (float("nan"), "", "nan"),
        ({"a": [None, float("inf")]}, "a[1]", "inf"),
        ({"a": {"b": "x\0y"}}, "a.b", "NUL"),
        (["ok", "\ud800"], "[1]", "surrogate"),
        ({"\udfff": 1}, "", "surrogate"),
        ({"a": {1: 2}}, "a", "the key 1 is of type int"),
        ({"a": {1, 2}}, "a", "builtins.set"),
        (b"x", "", "builtins.bytes"),
        ([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], "[0]", "datetime"),
        ([2**64], "[0]", "64 bits"),
        (-(2**63) - 1, "", "64 bits"),
        ({"p": Point(1, (float("nan"),))}, "p.tags[0]", "nan"),  # type: ignore[arg-type]
        (deep(101), None, "deeper than 100"),
        (object(), "", "object"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(value: Any, path: str | None, says: str) -> None:
    for write in (dumps, canonical, digest):
        with pytest.raises(NotJson) as refused:
            write(value)
        assert says in refused.value.message
        assert path is None or refused.value.path == path


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotJson, match="deeper than 100"):
        dumps(value)


def test_a_hundred_levels_are_allowed() -> None:
    assert loads(dumps(deep(100))) == deep(100)


@pytest.mark.parametrize(
    "text",
    [
        "", "NaN", "[NaN]", "Infinity", "[1,]", "{'a': 1}", "01", "\ufeff1", '"\\ud800"', "1e400", "[1] 2", "nul",
        '"a\\u0000b"', '{"a\\u0000": 1}', "18446744073709551616", "-9223372036854775809", "[1" + "0" * 5000 + "]",
        "\ud800", '"tab\there"', b"\xff", b'"\xed\xa0\x80"',
    ],
)  # fmt: skip
def test_what_is_no_json_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(NotJson):
        loads(text)


@pytest.mark.parametrize(
    "text", ["[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000, "[" * 1_000_000, "[{" * 51]
)
def test_deep_text_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(NotJson, match="deeper than 100"):
        loads(text)


def test_brackets_inside_strings_are_not_nesting() -> None:
    value = ["[" * 500, {"}": '"[[{{\\'}] * 60
    assert loads(dumps(value)) == value
    with pytest.raises(NotJson, match="deeper than 3"):
        loads("[[[[1]]]]", max_depth=3)
    assert loads("[[[1]],[[2]]]", max_depth=3) == [[[1]], [[2]]]


def test_of_a_repeated_key_the_last_one_holds() -> None:
    assert loads('{"a": 1, "a": 2}') == {"a": 2}


def test_long_digits_that_lose_nothing_are_taken() -> None:
    text = '["12345678901234567890123", 18446744073709551615, -9223372036854775808, 0.12345678901234567890]'
    assert loads(text) == ["12345678901234567890123", 2**64 - 1, -(2**63), 0.12345678901234568]


def test_sizes_are_counted_in_bytes() -> None:
    assert dumps("é", max_bytes=4) == '"é"'
    assert loads('"é"', max_bytes=4) == "é"
    for call in (lambda: dumps("é", max_bytes=3), lambda: loads('"é"', max_bytes=3)):
        with pytest.raises(NotJson, match="4 bytes") as refused:
            call()
        assert refused.value.too_large


@given(st.text(max_size=60) | st.text(st.sampled_from('[]{}",:\\u0 19eE+-.ntf'), max_size=60))
def test_any_text_is_read_as_python_reads_it_or_refused(text: str) -> None:
    try:
        value = loads(text)
    except NotJson:
        return
    assert value == json.loads(text)
    assert loads(dumps(value)) == value
