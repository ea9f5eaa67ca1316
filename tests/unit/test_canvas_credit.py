"""The gate in front of RabbitMQ: never more in hand than slots, no ack forgotten, no slot left idle."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from orchestrator.canvas.credit import AmqpGate, OpenGate


class Rabbit:
    """A queue that never runs dry, and a worker before it. RabbitMQ pushes until ``prefetch`` are unacked."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.prefetch = 0
        self.subscribed = 0
        self.unacked: set[int] = set()
        self.mine: set[int] = set()
        self.claiming: deque[tuple[int, int]] = deque()
        self.running: list[int] = []
        self.last = 0
        self.gate = AmqpGate(self, lambda: self.slots - self.in_hand, slots)
        self.consume()

    @property
    def in_hand(self) -> int:
        return len(self.claiming) + len(self.running)

    # What the gate sees as a kombu consumer

    def qos(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count

    def consume(self) -> None:
        self.subscribed, self.mine = self.prefetch, set()

    def cancel(self) -> None:
        self.subscribed = 0

    # What happens

    def push(self) -> bool:
        if len(self.mine) >= self.subscribed:
            return False
        self.last += 1
        self.unacked.add(self.last)
        self.mine.add(self.last)
        self.claiming.append((self.last, self.gate.delivered()))
        assert self.in_hand <= self.slots
        return True

    def ack(self, message: int) -> Callable[[], None]:
        def accept() -> None:
            self.unacked.remove(message)
            self.mine.discard(message)

        return accept

    def claim(self) -> bool:
        if not self.claiming:
            return False
        message, receipt = self.claiming.popleft()
        self.running.append(message)
        self.gate.claimed(receipt, self.ack(message))
        return True

    def finish(self, place: int = 0) -> bool:
        if not self.running:
            return False
        self.running.pop(place % len(self.running))
        self.gate.freed()
        return True

    def settle(self) -> None:
        """Everything that needs no slot happens."""
        while self.push() or self.claim():
            pass


@pytest.mark.parametrize("slots", [1, 2, 3, 10, 40, 200])
def test_any_order_of_events_keeps_within_the_slots(slots: int, seed: int) -> None:
    chance = random.Random(seed + slots)
    rabbit = Rabbit(slots)
    for _ in range(20_000):
        match chance.choices(("push", "claim", "finish", "look"), (5, 4, 4, 0.2))[0]:
            case "push":
                rabbit.push()
            case "claim":
                rabbit.claim()
            case "finish":
                rabbit.finish(chance.randrange(1000))
            case _:
                rabbit.gate.look()
    assert rabbit.last > 1_000
    rabbit.settle()
    assert rabbit.in_hand == slots
    for _ in range(slots):
        rabbit.finish()
        rabbit.settle()
        assert rabbit.in_hand == slots, "a free slot is filled"
    rabbit.gate.close()
    assert not rabbit.unacked


@pytest.mark.parametrize("slots", [1, 2, 10, 40])
def test_a_full_worker_keeps_no_ack_for_three_looks(slots: int) -> None:
    rabbit = Rabbit(slots)
    rabbit.settle()
    assert rabbit.in_hand == slots
    for _ in range(3):
        rabbit.gate.look()
        rabbit.settle()
    assert not rabbit.unacked
    assert rabbit.in_hand == slots
    rabbit.finish()
    rabbit.settle()
    assert rabbit.in_hand == slots


def test_an_almost_full_worker_keeps_no_ack_for_ever() -> None:
    rabbit = Rabbit(10)
    for _ in range(8):
        rabbit.push()
        rabbit.claim()
    assert rabbit.unacked, "3 deliverable would be more than 2 free"
    for _ in range(3):
        rabbit.gate.look()
    assert not rabbit.unacked
    rabbit.settle()
    assert rabbit.in_hand == 10


def test_the_prefetch_grows_back() -> None:
    rabbit = Rabbit(20)
    rabbit.settle()
    for _ in range(3):
        rabbit.gate.look()
    rabbit.finish()
    assert rabbit.subscribed == 1
    for _ in range(19):
        rabbit.finish()
    rabbit.gate.look()
    assert rabbit.subscribed == 10


def test_acks_at_once_while_there_is_room() -> None:
    rabbit = Rabbit(20)
    for _ in range(10):
        rabbit.push()
        rabbit.claim()
        assert not rabbit.unacked


def test_a_closed_gate_keeps_nothing_and_consumes_nothing() -> None:
    rabbit = Rabbit(4)
    rabbit.push()
    rabbit.cancel()
    rabbit.gate.close()
    rabbit.claim()
    rabbit.finish()
    assert not rabbit.unacked
    assert rabbit.subscribed == 0


def test_the_open_gate_acks_at_once() -> None:
    acked: list[int] = []
    gate = OpenGate()
    gate.claimed(gate.delivered(), lambda: acked.append(1))
    assert acked == [1]
