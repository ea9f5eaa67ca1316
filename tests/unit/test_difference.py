"""Where two JSON values differ, in few words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.difference import PLACES, SHOWN, difference

TEXT = st.text("a~/é", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        (1, 2, [("", "1", "2")]),
        ({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3, 4]}, [("/b/1", "2", "3"), ("/b/2", None, "4")]),
        ({"a/b": 1, "~": 1}, {}, [("/a~1b", "1", None), ("/~0", "1", None)]),
        ([1], {"0": 1}, [("", "[1]", '{"0":1}')]),
        (1, True, [("", "1", "true")]),
        ({"a": None}, {}, [("/a", "null", None)]),
    ],
)
def test_each_place_is_named(before: Any, after: Any, places: Any) -> None:
    assert [(one["at"], one["from"], one["to"]) for one in difference(before, after)] == places


@given(VALUES, VALUES)
def test_equal_values_and_only_those_have_no_difference(before: Any, after: Any) -> None:
    assert difference(before, before) == []
    assert (difference(before, after) == []) == (repr(before) == repr(after) or _same(before, after))


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: the order of keys does not matter, true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def test_it_stays_short() -> None:
    found = difference({}, {str(i): "x" * 1000 for i in range(100)})
    assert len(found) == PLACES + 1
    assert found[-1]["at"] == "…"
    assert max(len(one["to"] or "") for one in found) == SHOWN
