"""The dispatcher's promises, with a line that does as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from orchestrator.canvas import dispatch
from orchestrator.canvas.app import make_app
from orchestrator.canvas.dispatch import MAX_BATCH, MAX_WAITING, KombuDispatcher
from orchestrator.canvas.messages import Outgoing
from orchestrator.domain.ids import QueueName, StepRef
from tests.support.brokers import refs


class FakeLine:
    """``open`` is set while ``send`` may proceed; ``broken`` makes every use fail."""

    def __init__(self) -> None:
        self.sent: list[list[Outgoing]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.broken = False
        self.connects = 0

    def connect(self) -> None:
        self.connects += 1
        if self.broken:
            raise OSError("refused")

    def send(self, batch: Sequence[Outgoing]) -> None:
        self.entered.set()
        self.open.wait(20)
        if self.broken:
            raise OSError("cut")
        self.sent.append(list(batch))

    def close(self) -> None: ...

    @property
    def ids(self) -> list[str]:
        return [message.id for batch in self.sent for message in batch]


class Listener:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.lost: list[StepRef] = []
        self.broker: list[bool] = []

    def on_lost(self, found: Sequence[StepRef]) -> None:
        with self.changed:
            self.lost += found
            self.changed.notify_all()

    def on_broker(self, up: bool) -> None:
        with self.changed:
            self.broker.append(up)
            self.changed.notify_all()

    def wait_for(self, broker: list[bool] | None = None, lost: int = 0) -> None:
        with self.changed:
            assert self.changed.wait_for(
                lambda: (broker is None or self.broker == broker) and len(self.lost) >= lost, 20
            ), (self.broker, len(self.lost))


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def dispatcher(line: FakeLine, listener: Listener) -> Iterator[KombuDispatcher]:
    made = KombuDispatcher(make_app("memory://"), listener.on_lost, listener.on_broker, line=line)
    listener.wait_for(broker=[True])
    yield made
    line.open.set()
    made.close()


def test_publishes_in_order_and_in_batches(dispatcher: KombuDispatcher, line: FakeLine) -> None:
    line.open.clear()
    dispatcher.publish(refs(1))
    line.entered.wait(20)
    dispatcher.publish(refs(MAX_BATCH + 1, job="b"))
    dispatcher.publish_marker(QueueName("default"), 7)
    line.open.set()
    dispatcher.close()
    assert [len(batch) for batch in line.sent] == [1, MAX_BATCH, 2]
    assert line.ids[1] == "b:s0:1"
    assert line.ids[-1] == "marker:default:7"


def test_never_blocks_and_bounds_what_waits(dispatcher: KombuDispatcher, line: FakeLine, listener: Listener) -> None:
    line.open.clear()
    dispatcher.publish(refs(1))
    line.entered.wait(20)
    dispatcher.publish(refs(MAX_WAITING))
    assert listener.lost == []
    dispatcher.publish(refs(3, job="more"))
    assert [ref.job_id for ref in listener.lost] == ["more"] * 3
    dispatcher.publish_marker(QueueName("default"), 1)  # dropped: the next one says more
    line.open.set()
    dispatcher.close()
    assert len(line.ids) == 1 + MAX_WAITING


def test_a_failed_batch_is_lost_and_the_broker_down_until_it_is_back(
    dispatcher: KombuDispatcher, line: FakeLine, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LONGEST_PAUSE", 0.05)
    line.broken = True
    dispatcher.publish(refs(5))
    listener.wait_for(broker=[True, False], lost=5)
    dispatcher.publish(refs(2, job="meanwhile"))
    listener.wait_for(lost=7)
    line.broken = False
    listener.wait_for(broker=[True, False, True])
    dispatcher.publish(refs(1, job="after"))
    dispatcher.close()
    assert line.ids == ["after:s0:1"]
    assert len(listener.lost) == 7


def test_markers_are_never_reported_lost(dispatcher: KombuDispatcher, line: FakeLine, listener: Listener) -> None:
    line.broken = True
    dispatcher.publish_marker(QueueName("default"), 1)
    listener.wait_for(broker=[True, False])
    assert listener.lost == []


def test_close_gives_up_after_2_s_and_reports(
    dispatcher: KombuDispatcher, line: FakeLine, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "CLOSE_SECONDS", 0.1)
    line.open.clear()
    dispatcher.publish(refs(1))
    line.entered.wait(20)
    dispatcher.publish(refs(4, job="waiting"))
    dispatcher.close()
    assert [ref.job_id for ref in listener.lost] == ["waiting"] * 4
    dispatcher.publish(refs(1, job="late"))
    assert listener.lost[-1].job_id == "late"


def test_a_listener_that_raises_stops_nothing(line: FakeLine, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("listener")

    made = KombuDispatcher(make_app("memory://"), fail, fail, line=line)
    made.publish(refs(1))
    made.close()
    assert line.ids == ["job:s0:1"]
    assert "dispatch.listener_failed" in caplog.messages
