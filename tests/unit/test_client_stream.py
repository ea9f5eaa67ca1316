"""The client's reader of event streams: any cut of the bytes gives the same events."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.sse import frame
from orchestrator.client.stream import TRIES, Frames, Position
from orchestrator.client.words import Event

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def view(number: int, text: str) -> dict[str, object]:
    return {
        "v": 1, "job": "j", "number": number, "run": 1, "type": "step.failed", "path": None, "at": 1.5,
        "data": {"m": text},
    }  # fmt: skip


@given(st.lists(texts, max_size=5), st.lists(st.integers(0, 2000), max_size=20), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_cut_of_the_bytes_gives_the_same_events(said: list[str], cuts: list[int], line_end: str) -> None:
    text = "retry: 1000\n\n: alive\n\n" + "".join(frame(view(n, said[n])) for n in range(len(said)))
    raw = text.replace("\n", line_end).encode() + b": tail\n\n"
    frames, found = Frames(), []
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    for start, end in itertools.pairwise(edges):
        found += frames.feed(raw[start:end])
    assert [(event.number, event.data["m"]) for event in found] == list(enumerate(said))


def test_half_an_event_is_none() -> None:
    whole = frame(view(1, "x")).encode()
    assert Frames().feed(whole[:-1]) == []


def test_fields_of_a_newer_server_are_let_pass() -> None:
    newer = {**view(1, "x"), "v": 2, "type": "job.teleported", "extra": True}
    [event] = Frames().feed(f"data: {json.dumps(newer)}\n\n".encode())
    assert (event.type, event.data) == ("job.teleported", {"m": "x"})


def test_an_event_without_end_is_refused() -> None:
    frames = Frames()
    assert frames.feed(b"data: " + b"x" * 60 * 1024 * 1024) == []
    with pytest.raises(ValueError, match="64 MiB"):
        frames.feed(b"x" * 5 * 1024 * 1024)


def test_a_position_drops_what_it_has_and_gives_up_without_progress() -> None:
    position = Position(3)
    event = Event("j", 4, 1, "x", None, 1.0, {})
    assert [position.take(event), position.take(event), position.last] == [True, False, 4]
    waits = [position.failed(1.0) for _ in range(TRIES + 1)]
    assert waits[-1] is None
    assert all(wait is not None and 0 < wait <= 5 for wait in waits[:-1])
    position.take(Event("j", 5, 1, "x", None, 1.0, {}))
    assert position.failed(1.0) is not None
