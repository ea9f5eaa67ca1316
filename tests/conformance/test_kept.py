"""What becomes ready together stays with its worker: as far as it has slots, and as its share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.ids import JobId, QueueName
from orchestrator.domain.outcome import Stored
from orchestrator.domain.result import Released, Succeeded
from orchestrator.domain.workflow import Agent
from orchestrator.engine import cancel, release
from orchestrator.engine.feed import FEW
from orchestrator.engine.gather import Claimed
from orchestrator.engine.settle import Room, Settle, Settled, claim, settle
from orchestrator.store import steps
from tests.support.bench import Bench
from tests.support.bench import bench as bench_on
from tests.support.listening import listening

DEFAULT = QueueName("default")
AGENTS = {"echo": {"kind": "scripted"}, "far": {"kind": "scripted", "queue": "far"}}
A: dict[str, Any] = {"id": "a", "agent": "echo"}
LAST: dict[str, Any] = {"id": "z", "agent": "echo", "with": "${{ steps.f }}"}


def light(_: Agent) -> bool:
    return True


def heavy(_: Agent) -> bool:
    return False


def fan(agent: str = "echo") -> dict[str, Any]:
    return {"id": "f", "for_each": "${{ steps.a }}", "do": {"agent": agent}}


def begun(bench: Bench, *more: dict[str, Any]) -> Claimed:
    """The first step of a new job, claimed."""
    bench.submit({"name": "t", "agents": AGENTS, "steps": [A, *more]}, None)
    bench.pump()
    return next(iter(claim(bench.engine, [bench.take()]).values()))


def intent(mine: Claimed, text: str = "1") -> Settle:
    row, result = mine.row, Succeeded(Stored(text))
    return Settle(row.job_id, row.path, row.ref, row.fence, result, continue_on=frozenset({"default"}))


def opened(
    bench: Bench, width: int, slots: int, kind: Callable[[Agent], bool], *, agent: str = "echo", workers: int = 1
) -> tuple[Settled, list[Claimed]]:
    """A fan-out of ``width`` that opened in one of ``workers``, with ``slots``; and what it goes on with."""
    first = intent(begun(bench, fan(agent), LAST), str([*range(width)]))
    bench.engine.feed.serve({DEFAULT: workers})
    (settled,) = settle(bench.engine, [first], Room(slots, kind))
    assert settled.won
    return settled, [*([settled.next] if settled.next else []), *settled.beside]


@pytest.mark.parametrize(
    ("width", "slots", "kind", "workers", "kept"),
    [
        (5, 10, light, 0, 5),  # few and light: whoever else works
        (5, 2, light, 2, 3),  # one slot came with the step before
        (5, 0, light, 2, 1),
        (5, 10, heavy, 2, 3),  # half of them, rounded up
        (5, 10, heavy, 1, 5),
        (5, 10, heavy, 9, 1),
        (5, 10, heavy, 0, 1),  # not yet known who else works
        (FEW + 2, 100, light, 2, FEW // 2 + 1),
    ],
)
def test_how_many_stay(bench: Bench, width: int, slots: int, kind: Any, workers: int, kept: int) -> None:
    settled, mine = opened(bench, width, slots, kind, workers=workers)
    assert [one.row.path for one in mine] == [f"f/{n}" for n in range(kept)]
    assert settled.ready == width - kept
    assert all((one.row.state, one.row.lease_owner, one.row.attempt) == ("running", "bench-1", 1) for one in mine)
    bench.pump()
    assert len(bench.dispatcher.refs) == width - kept


def test_while_others_wait_only_few_light_ones_stay(bench: Bench) -> None:
    firsts = [intent(begun(bench, fan()), str([*range(width)])) for width in (5, 5, FEW + 1)]
    bench.engine.feed.behind([DEFAULT])
    done = [
        settle(bench.engine, [first], Room(100, kind))[0]
        for first, kind in zip(firsts, (heavy, light, light), strict=True)
    ]
    assert [len(one.beside) for one in done] == [0, 4, 0]


def test_what_another_queue_serves_is_left_to_it(bench: Bench) -> None:
    assert opened(bench, 3, 10, light, agent="far")[1] == []


def test_slots_are_for_all_that_settle_in_one_batch(bench: Bench) -> None:
    first, second = begun(bench, fan()), begun(bench, fan())
    done = settle(bench.engine, [intent(first, "[1, 2, 3]"), intent(second, "[1, 2, 3]")], Room(3, light))
    assert [len(one.beside) for one in done] == [2, 1]


def test_a_job_that_is_kept_whole_takes_no_message_and_reads_nothing(url: str) -> None:
    with bench_on(url, slots=20) as it:
        job = it.submit({"name": "t", "agents": AGENTS, "steps": [A, fan(), LAST]}, [1, 2, 3])
        with listening() as heard:
            assert it.drive() == 1
        assert it.job(job)["output"] == [1, 2, 3]
        assert not [sql for sql in heard.said if "{for_update}" in sql and "FROM jobs j" in sql]
        assert it.slots.free == 20
        it.check()


def alone(bench: Bench) -> list[Claimed]:
    """Three branches of a job that all run here, remembered."""
    mine = opened(bench, 3, 10, light)[1]
    assert len(mine) == 3
    assert len(bench.engine.recent) == 1
    return mine


def test_two_branches_in_one_batch_are_both_written_from_memory(bench: Bench) -> None:
    mine = alone(bench)
    with listening() as heard:
        assert all(done.won for done in settle(bench.engine, [intent(one) for one in mine[:2]]))
    assert not any(sql.lstrip().startswith("SELECT") for sql in heard.said)
    (last,) = settle(bench.engine, [intent(mine[2])])
    assert last.next is not None
    assert last.next.row.path == "z"
    assert settle(bench.engine, [intent(last.next)])[0].job_state == "succeeded"


def test_a_job_of_which_a_branch_was_published_is_not_remembered(bench: Bench) -> None:
    assert len(opened(bench, 3, 1, light)[1]) == 2
    assert len(bench.engine.recent) == 0


def test_beside_a_branch_of_another_worker_nothing_is_remembered(bench: Bench, other: Bench) -> None:
    """Nothing waits to be claimed any more; but the other branch moves the job too."""
    body = [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo"}]
    (settled,) = settle(bench.engine, [intent(begun(bench, {"id": "f", "for_each": "[1, 2]", "do": body}))])
    assert settled.next is not None
    bench.pump()
    assert len(claim(other.engine, [bench.take()])) == 1
    (settled,) = settle(bench.engine, [intent(settled.next)])
    assert settled.next is not None
    assert settled.next.row.path == "f/0/y"
    assert len(bench.engine.recent) == 0


def test_a_cancel_between_two_branches_is_seen(bench: Bench) -> None:
    mine = alone(bench)
    assert settle(bench.engine, [intent(mine[0])])[0].won
    job = mine[0].row.job_id
    cancel.cancel(bench.engine, job)
    assert all(done.won and done.next is None for done in settle(bench.engine, [intent(one) for one in mine[1:]]))
    assert bench.job(job)["state"] == "cancelled"


def lost(other: Bench, mine: Claimed) -> None:
    """As the scheduler sees it: in a process that remembers nothing."""
    row = mine.row
    assert release.release_lost(other.engine, other.db.run(lambda s: steps.load(s, row.job_id, [row.path]))) == 1


def test_a_branch_that_was_lost_and_claimed_here_again_wins(bench: Bench, other: Bench) -> None:
    """What is remembered knows its claim before: believing that, its finished call would be thrown away."""
    mine = alone(bench)
    lost(other, mine[1])
    bench.pump()
    (again,) = claim(bench.engine, [bench.take()]).values()
    assert (again.row.path, again.row.attempt) == ("f/1", 2)
    assert not settle(bench.engine, [intent(mine[1])])[0].won
    assert settle(bench.engine, [intent(again)])[0].won


def handed_back(other: Bench, mine: Claimed) -> None:
    """Without an event: only the fence tells."""
    row = mine.row
    back = Settle(row.job_id, row.path, row.ref, row.fence, Released(lost=False))
    assert settle(other.engine, [back])[0].won


@pytest.mark.parametrize("gone", [lost, handed_back])
def test_a_step_in_line_that_is_claimed_here_again_wins(
    bench: Bench, other: Bench, gone: Callable[[Bench, Claimed], None]
) -> None:
    (first,) = settle(bench.engine, [intent(begun(bench, {"id": "b", "agent": "echo"}))])
    assert first.next is not None
    assert len(bench.engine.recent) == 1
    gone(other, first.next)
    bench.pump()
    (again,) = claim(bench.engine, [bench.take()]).values()
    assert settle(bench.engine, [intent(again)])[0].won
    assert state(bench, again.row.job_id) == "succeeded"


def test_a_branch_that_another_worker_took_over_counts_once(bench: Bench, other: Bench) -> None:
    """This process still remembers it as its own."""
    mine = alone(bench)
    lost(other, mine[1])
    bench.pump()
    (theirs,) = claim(other.engine, [bench.take()]).values()
    assert settle(other.engine, [intent(theirs, '"theirs"')])[0].won
    done = settle(bench.engine, [intent(one) for one in mine])
    assert [one.won for one in done] == [True, False, True]
    last = next(one.next for one in done if one.next is not None)
    assert settle(bench.engine, [intent(last, last.outputs["f"])])[0].won
    assert bench.job(mine[0].row.job_id)["output"] == [1, "theirs", 1]


def state(bench: Bench, job: JobId) -> str:
    return str(bench.job(job)["state"])
