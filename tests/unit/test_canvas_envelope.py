"""The guard's judgement, without a broker."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from kombu.transport.virtual import Channel, Message

from orchestrator.canvas.envelope import MAX_BYTES, MAX_DEPTH, BadMessage, check_message, deeper_than, open_envelope
from orchestrator.canvas.guard import Guard
from orchestrator.canvas.messages import MARKER, STEP, marker_message
from orchestrator.domain.ids import QueueName
from tests.support.broken_messages import BROKEN, EMBED, changed, good_envelope, mutate, with_body

KNOWN = {STEP, MARKER, "theirs.task"}


class Codec:
    """What a kombu message needs of its channel."""

    decode_body = Channel.decode_body
    codecs = Channel.codecs


def judge(raw: bytes) -> None:
    check_message(Message(open_envelope(raw), channel=Codec()), KNOWN.__contains__)


@pytest.mark.parametrize("kind", BROKEN)
def test_refuses(kind: str) -> None:
    with pytest.raises(BadMessage) as refused:
        judge(BROKEN[kind])
    assert 10 < len(str(refused.value)) < 200


def test_at_least_the_17_promised_classes_are_there() -> None:
    assert len(BROKEN) >= 17


def test_accepts_steps_and_markers() -> None:
    judge(json.dumps(good_envelope()).encode())
    marker = marker_message(QueueName("default"), 3)
    judge(json.dumps(with_body(marker.body, **marker.headers)).encode())


def test_accepts_the_root_step_and_long_paths() -> None:
    judge(json.dumps(with_body([["job", "", 0], {}, EMBED])).encode())
    judge(json.dumps(with_body([["job", "ü/" * 2000, 2**63 - 1], {}, EMBED])).encode())


def test_accepts_a_users_own_task() -> None:
    judge(json.dumps(with_body([[1, {"a": [2]}], {"x": None}, {}], task="theirs.task")).encode())


@pytest.mark.parametrize("levels", [MAX_DEPTH - 1, MAX_DEPTH])
def test_bounds_the_depth_of_a_users_own_task(levels: int) -> None:
    nested: Any = 1
    for _ in range(levels):
        nested = [nested]
    assert not deeper_than(nested, MAX_DEPTH)
    with pytest.raises(BadMessage, match="deeper"):
        judge(json.dumps(with_body([[nested], {}, {}], task="theirs.task")).encode())


def test_bounds_the_size() -> None:
    with pytest.raises(BadMessage, match="limit"):
        judge(b" " * (MAX_BYTES + 1))


def test_no_mutation_makes_it_raise_anything_else(seed: int) -> None:
    chance = random.Random(seed)
    raw = json.dumps(good_envelope()).encode()
    refused = 0
    for _ in range(5_000):
        try:
            judge(mutate(raw, chance))
        except BadMessage:
            refused += 1
    assert refused > 2_500


class TestGuard:
    def test_hands_over_the_bytes_and_counts(self) -> None:
        kept: list[tuple[bytes, str, str]] = []
        guard = Guard(is_known=KNOWN.__contains__, keep=lambda *found: kept.append(found))
        assert guard.open(b"{", "q") is None
        assert kept == [(b"{", "q", "envelope is not JSON")]
        assert guard.refused == 1

    def test_keeps_at_most_a_mebibyte(self) -> None:
        kept: list[bytes] = []
        Guard(is_known=KNOWN.__contains__, keep=lambda raw, *_: kept.append(raw)).open(b" " * 3_000_000, "q")
        assert len(kept[0]) == MAX_BYTES

    def test_survives_a_quarantine_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        def fail(*_: Any) -> None:
            raise OSError("disk full")

        guard = Guard(is_known=KNOWN.__contains__, keep=fail)
        assert guard.open(b"{", "q") is None
        assert "quarantine.failed" in caplog.messages

    def test_survives_a_message_of_no_known_shape(self) -> None:
        guard = Guard(is_known=KNOWN.__contains__, keep=lambda *_: None)
        assert guard.problem(object()) is not None

    def test_says_nothing_about_a_good_one(self) -> None:
        guard = Guard(is_known=KNOWN.__contains__, keep=lambda *_: None)
        envelope = guard.open(json.dumps(changed("headers", "lang", "js")).encode(), "q")
        assert envelope is not None
        assert guard.problem(Message(envelope, channel=Codec())) is None
