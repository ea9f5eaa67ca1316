"""In which order the steps of one list run, and which have surely ended when another begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Order:
    """``ended[i]`` has bit k set when step k has ended before step i begins; of equal names the first counts.

    The index ``len(names)`` stands for the end of the list. ``cycle`` names steps that wait for each other, the first
    one again at the end; empty: there is none.
    """

    names: list[str]
    places: dict[str, int]
    ended: list[int]
    graph: bool
    cycle: tuple[str, ...] = ()

    def ends_before(self, name: str, at: int) -> bool:
        return bool(self.ended[at] >> self.places[name] & 1)

    def before(self, at: int) -> list[str]:
        return [name for name, i in self.places.items() if self.ended[at] >> i & 1]


def order_of(names: Sequence[str], wants: Sequence[Sequence[str]] | None) -> Order:
    """``wants[i]`` are the names that step i needs, unknown ones among them left out; None: each needs the one before.

    Steps of a cycle, and those behind them, count as ended after everything: one mistake is reported once.
    """
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        places.setdefault(name, i)
    if wants is None:
        return Order(list(names), places, [(1 << i) - 1 for i in range(len(names) + 1)], graph=False)
    needs = [[places[name] for name in want if name in places] for want in wants]
    everything = (1 << len(names)) - 1
    ended = [everything] * (len(names) + 1)
    placed = _sorted(needs)
    for i in placed:
        ended[i] = 0
        for need in needs[i]:
            ended[i] |= ended[need] | 1 << need
    cycle = tuple(names[i] for i in _cycle(needs, set(range(len(names))) - set(placed)))
    return Order(list(names), places, ended, graph=True, cycle=cycle)


def _sorted(needs: list[list[int]]) -> list[int]:
    """The steps in an order that serves every need; those that no order can serve are left out."""
    left = [len(need) for need in needs]
    after: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for one in need:
            after[one].append(i)
    placed = [i for i, count in enumerate(left) if count == 0]
    for i in placed:
        for follower in after[i]:
            left[follower] -= 1
            if left[follower] == 0:
                placed.append(follower)  # a queue: what is appended is visited too
    return placed


def _cycle(needs: list[list[int]], stuck: set[int]) -> list[int]:
    """Each stuck step needs a stuck step, so walking back along needs must come round."""
    if not stuck:
        return []
    step = min(stuck)
    walked: dict[int, int] = {}
    while step not in walked:
        walked[step] = len(walked)
        step = next(need for need in needs[step] if need in stuck)
    return [*list(walked)[walked[step] :], step][::-1]
