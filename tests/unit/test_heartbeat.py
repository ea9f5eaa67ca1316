"""When a worker takes itself out of service: deaf to its broker, or too many slots hanging."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.ids import Incarnation
from orchestrator.engine import presence
from tests.support.bench import bench
from workers.heartbeat import Heartbeat, Key


class Owner:
    """A runner with nothing to do."""

    draining = False

    def __init__(self, lost: int) -> None:
        self._lost = lost

    def executing(self) -> set[Key]:
        return set()

    def stop(self, key: Key, *, lost: bool) -> None:
        raise AssertionError(f"nothing runs, and {key} was stopped (lost: {lost})")

    def lost_slots(self) -> int:
        return self._lost

    def healthy(self) -> bool:
        return True

    def take_alarm(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("lost", "deaf", "sick"), [(0, False, False), (1, False, False), (2, False, True), (0, True, True)]
)
def test_a_sick_worker_retires(tmp_path: Path, lost: int, deaf: bool, sick: bool) -> None:
    """A quarter of eight slots lost, or nothing polled for long."""
    told: list[bool] = []
    with bench(f"sqlite:///{tmp_path / 'x.db'}") as it:
        who = presence.Registration(Incarnation("w"), "w", "worker", ("default",), 8, "test")
        presence.join(it.engine, who)
        beat = Heartbeat(it.engine, who, Owner(lost), on_sick=lambda: told.append(True), deaf=lambda: deaf)
        beat.beat()
    assert bool(told) is sick
