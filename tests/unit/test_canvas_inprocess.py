"""The in-process broker: order, waking, fairness, and frames of RabbitMQ's that do not parse."""

from __future__ import annotations

import threading
from struct import pack
from typing import Any

import pytest

from orchestrator.canvas.inprocess import Broker
from orchestrator.canvas.rabbit import forgiving_frame_handler
from orchestrator.clock import Clock


def asleep() -> bool:
    return False


@pytest.fixture
def broker() -> Broker:
    return Broker(Clock())


def test_first_in_first_out(broker: Broker) -> None:
    for number in range(3):
        broker.put("q", str(number).encode())
    assert [broker.wait(lambda: ["q"], asleep, 1) for _ in range(3)] == [("q", b"0"), ("q", b"1"), ("q", b"2")]
    assert broker.wait(lambda: ["q"], asleep, 0) is None


def test_takes_only_what_is_wanted(broker: Broker) -> None:
    broker.put("other", b"x")
    assert broker.wait(lambda: ["q"], asleep, 0) is None
    assert broker.size("other") == 1


def test_a_put_wakes_the_waiter(broker: Broker) -> None:
    found: list[Any] = []
    waits = threading.Event()

    def wanted() -> list[str]:
        waits.set()
        return ["q"]

    waiter = threading.Thread(target=lambda: found.append(broker.wait(wanted, asleep, 20)))
    waiter.start()
    waits.wait(20)
    broker.put("q", b"x")
    waiter.join(20)
    assert found == [("q", b"x")]


def test_it_looks_again_only_when_something_happens(broker: Broker) -> None:
    looks = []
    found = broker.wait(lambda: looks.append(1) or ["q"], asleep, 0.3)
    assert found is None
    assert len(looks) == 1


def test_wake_ends_the_wait(broker: Broker) -> None:
    woken = threading.Event()
    ended = threading.Event()
    waits = threading.Event()

    def wait() -> None:
        broker.wait(lambda: waits.set() or ["q"], woken.is_set, None)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    waits.wait(20)
    broker.wake(woken.set)
    assert ended.wait(20)


def test_two_brokers_have_two_epochs_and_no_queue_in_common(broker: Broker) -> None:
    other = Broker(Clock())
    broker.put("q", b"x")
    assert other.size("q") == 0
    assert broker.epoch != other.epoch
    assert broker.clear() == 1
    assert broker.size("q") == 0


class Frames:
    """What py-amqp's reader hands on."""

    bytes_recv = 0

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.read = forgiving_frame_handler(self, lambda *parts: self.got.append(parts))

    def deliver(self, properties: bytes, body: bytes) -> Any:
        self.read((1, 1, pack(">HH", 60, 60) + b"arguments"))
        self.read((2, 1, pack(">HHQ", 60, 0, len(body)) + properties))
        self.read((3, 1, body))
        return self.got[-1][3]


HEADERS = 1 << 13


def table(content: bytes) -> bytes:
    return pack(">H", HEADERS) + pack(">I", len(content)) + content


@pytest.mark.parametrize(
    "properties",
    [
        table(b"\x01tT" + pack(">Q", 2**62)),
        table(b"\x01t?"),
        table(b"\x01tS" + pack(">I", 2**31)),
        table(b"".join(b"\x01tF" + pack(">I", 5000 - number) for number in range(5000))),
        pack(">H", HEADERS) + b"\xff",
    ],
    ids=["time beyond year 9999", "unknown type", "text longer than the frame", "nested 5000 deep", "cut off"],
)
def test_properties_that_do_not_parse_are_read_as_none(properties: bytes) -> None:
    frames = Frames()
    message = frames.deliver(properties, b"body")
    assert bytes(message.body) == b"body"
    if message.properties:
        assert message.properties.keys() == {"application_headers"}
    good = frames.deliver(table(b"\x01tt\x01"), b"next")
    assert good.properties["application_headers"] == {"t": True}


def test_other_broken_frames_still_raise() -> None:
    with pytest.raises(Exception, match="Received frame 3"):
        Frames().read((3, 1, b"body without a header"))
