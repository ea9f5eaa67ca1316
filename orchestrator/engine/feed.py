"""Feeds the broker: rings for ready steps, at most about twice the workers' capacity per queue.

The backlog lives in SQL. A submit or settle that holds a credit marks its steps in its own transaction (``take``); the
rest is fetched by ``pump``, in weighted fair share over tenants, as claims free credits. One thread per process, woken
by events; the scheduler's tick is only the safety net.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from orchestrator.clock import Clock
from orchestrator.crashpoints import CrashPointReached, crashpoint
from orchestrator.domain.errors import OrchestratorError
from orchestrator.domain.ids import JobId, QueueName, StepRef
from orchestrator.domain.plan import StepRow
from orchestrator.ports import Dispatcher
from orchestrator.store import feed as sql
from orchestrator.store import workers
from orchestrator.store.database import Database
from orchestrator.store.session import Session, Statement

log = logging.getLogger("orchestrator.feed")

#: One in so many of what is published is the oldest, whatever its priority: nothing starves.
AGEING_SHARE = 8
#: So many light calls are not worth a message.
FEW = 32
#: Between two pumps of a queue whose workers have all they may have, in seconds, unless claims here free credit.
FULL_INTERVAL = 0.02
#: Between two looks, with a claim, at whether others left a backlog, in seconds.
LOOK_INTERVAL = 0.05


def step_ref(row: StepRow, job_id: JobId | None = None) -> StepRef:
    """``job_id``: whose the row is, where it does not say so itself."""
    return StepRef(job_id or row.job_id, row.path, row.epoch, row.queue, row.group)


class Feed:
    def __init__(
        self, db: Database, dispatcher: Dispatcher, clock: Clock, weights: Mapping[str, float] | None = None
    ) -> None:
        self._db = db
        self.dispatcher = dispatcher
        self._clock = clock
        self._weights = dict(weights or {})
        self._lock = threading.Condition()
        self._credit: dict[QueueName, int] = defaultdict(int)
        self._credit_until: dict[QueueName, float] = defaultdict(float)
        self._wanted: set[QueueName] = set()
        self._timers: list[float] = []
        self._backlog: dict[QueueName, bool] = defaultdict(bool)
        self._looked: dict[QueueName, float] = {}
        self._freed: dict[QueueName, int] = defaultdict(int)
        self._block: dict[QueueName, int] = defaultdict(lambda: 1)
        self._full_until: dict[QueueName, float] = defaultdict(float)
        self._virtual: dict[str, float] = {}
        self._workers: Mapping[QueueName, int] = {}
        self._closing = False
        self._thread: threading.Thread | None = None
        #: Told, outside any transaction, which agents' steps a breaker holds back (``engine/reroute.py``).
        self.on_held: Callable[[Collection[sql.Limited]], object] = lambda _held: None

    # -- the thread

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="orchestrator-feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.dispatcher.close()

    def wake(self, queues: Iterable[QueueName]) -> None:
        """There may be something to publish in ``queues``."""
        with self._lock:
            self._wanted.update(queues)
            self._lock.notify_all()

    def wake_at(self, delay: float) -> None:
        """A retry falls due in ``delay`` seconds."""
        with self._lock:
            self._timers.append(self._clock.monotonic() + delay)
            self._lock.notify_all()

    def claimed(self, queue: QueueName, count: int = 1) -> None:
        """Claims free credits; once most of this process's share is free, the next are fetched for the backlog.

        What is left of it must last until those come; sooner costs a look at the database for fewer of them.
        """
        with self._lock:
            self._freed[queue] += count
            if self._freed[queue] * 4 >= self._block[queue] * 3 and self._backlog[queue]:
                self._wanted.add(queue)
                self._full_until[queue] = 0.0
                self._lock.notify_all()

    def unsure(self, queues: Iterable[QueueName]) -> list[QueueName]:
        """Those of ``queues`` about whose backlog a claim should ask: others submit too, and only SQL knows."""
        now = self._clock.monotonic()
        with self._lock:
            found = [q for q in queues if not self._backlog[q] and now - self._looked.get(q, -1e9) >= LOOK_INTERVAL]
            self._looked.update(dict.fromkeys(found, now))
        return found

    def behind(self, queues: Iterable[QueueName]) -> None:
        """``queues`` have a backlog: the credits that claims free are to be used."""
        with self._lock:
            self._backlog.update(dict.fromkeys(queues, True))

    def ended(self, queue: QueueName, *, limited: bool) -> None:
        """A step ended: its agent's limit, or a slot, may be free for one that waits."""
        if limited or self._backlog[queue]:
            self.wake([queue])

    def serve(self, workers: Mapping[QueueName, int]) -> None:
        """So many processes take work from each queue."""
        self._workers = workers

    def share(self, queue: QueueName, count: int, *, light: bool) -> int:
        """How many of ``count`` calls of an agent that became ready here this process may keep.

        All, where they are few and ``light``: to tell another worker would cost more than they do, and a job goes on
        with them as with one. Else as many as fall to each worker; none while others wait in the queue, or before it is
        known who takes from it.
        """
        if light and count <= FEW:
            return count
        workers = self._workers.get(queue, 0)
        return 0 if self._backlog[queue] or not workers else -(-count // workers)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._closing or self._to_pump() or self._due()):
                    self._lock.wait(self._until_timer())
                if self._closing:
                    return
                wanted = self._to_pump()
                self._wanted -= wanted
                timers = self._due()
                self._timers = [at for at in self._timers if at > self._clock.monotonic()]
            try:
                if timers:
                    crashpoint("timer.fire")
                    wanted |= set(self._db.run(sql.due_timers))
                for queue in sorted(wanted):
                    self.pump(queue)
            except (OrchestratorError, CrashPointReached) as error:
                log.warning("feed.failed", extra={"error": str(error)})
            except Exception:  # the feed must outlive any single failure; the safety net repeats its work
                log.exception("feed.bug")

    def _due(self) -> bool:
        now = self._clock.monotonic()
        return any(at <= now for at in self._timers)

    def _to_pump(self) -> set[QueueName]:
        now = self._clock.monotonic()
        return {queue for queue in self._wanted if self._full_until[queue] <= now}

    def _until_timer(self) -> float | None:
        at = [*self._timers, *(self._full_until[queue] for queue in self._wanted)]
        return max(0.0, min(at) - self._clock.monotonic()) + 0.001 if at else None

    # -- marking in the caller's transaction

    def granted(self, ready: Iterable[StepRow]) -> list[bool]:
        """For which of the steps this process holds a credit; it is spent."""
        granted = []
        with self._lock:
            now = self._clock.monotonic()
            for row in ready:
                queue = row.queue
                free = not (row.limited or self._backlog[queue] or now > self._credit_until[queue])
                granted.append(free and self._credit[queue] > 0)
                self._credit[queue] -= granted[-1]
        return granted

    def take(
        self,
        session: Session,
        ready: Sequence[StepRow],
        now: float,
        bodies: Sequence[StepRow] = (),
        marks: sql.Markers | None = None,
    ) -> list[StepRef]:
        """Marks those of ``ready`` for which this process holds a credit; publish the answer after the commit.

        Rows are changed in memory, before they are written. What is left stays unmarked: ``wake`` its queue.
        ``bodies`` are marked whatever the credit, and left to their settle's caller to publish. ``marks``: the queues'
        markers, if this transaction has asked for them.
        """
        others = [row for row in ready if not any(row is body for body in bodies)]
        chosen = [row for row, granted in zip(others, self.granted(others), strict=True) if granted]
        if chosen or bodies:
            if marks is None:
                marks = sql.markers(session.rows(*sql.ASKING_FOR_MARKERS))
            for row in (*chosen, *bodies):
                row.dispatched_at, row.mark = now, marks.get(row.queue, 0)
        return [step_ref(row) for row in chosen]

    def committed(self, published: Sequence[StepRef], ready: Sequence[StepRow]) -> None:
        """After the commit: rings for what was marked, and sees to the rest."""
        self.going(published, {row.queue for row in ready if row.dispatched_at is None})

    def going(self, published: Sequence[StepRef], left: Collection[QueueName]) -> None:
        """After the commit: rings for ``published``, and sees to the queues in which there is more."""
        if published:
            self.publish(published)
        if left:
            self.wake(left)

    def publish(self, refs: Sequence[StepRef]) -> None:
        try:
            crashpoint("publish.before")
            self.dispatcher.publish(refs)
            crashpoint("publish.after")
        except CrashPointReached:
            log.warning("publish.failed", extra={"count": len(refs)})

    def lost(self, refs: Sequence[StepRef]) -> None:
        """The dispatcher could not publish ``refs``: back to the backlog, for the safety net to try again."""
        try:
            self._db.run(lambda session: sql.unring(session, refs))
        except OrchestratorError as error:
            log.warning("feed.unring_failed", extra={"error": str(error), "count": len(refs)})

    # -- fetching from the backlog

    def pump(self, queue: QueueName) -> int:
        """Publishes what the queue's credit allows; answers how many."""
        refs, most, credit, publishers, held = self._db.run(lambda session: self._choose(session, queue))
        with self._lock:
            left = credit - len(refs)
            self._backlog[queue] = credit <= 0 or left <= 0
            self._block[queue] = max(1, most // max(1, publishers))
            self._freed[queue] = 0
            self._credit[queue] = max(0, left) // max(1, publishers)
            self._credit_until[queue] = self._clock.monotonic() + 1.0
            self._full_until[queue] = self._clock.monotonic() + FULL_INTERVAL if credit <= 0 else 0.0
        if refs:
            self.publish(refs)
        if held:
            self.on_held(held)
        return len(refs)

    def _choose(self, session: Session, queue: QueueName) -> tuple[list[StepRef], int, int, int, set[sql.Limited]]:
        """What to publish, the most that may be out, how much of that was free, how many publish, what is held back."""
        live, outstanding, tenants, metered = session.together(
            workers.asking_live(),
            sql.asking_outstanding(queue),
            sql.asking_for_tenants(queue),
            sql.ASKING_WHETHER_LIMITED,
        )
        alive = workers.live_of(live)
        self.serve(workers.serving(alive))
        slots = sum(
            max(0, row["slots"] - row["lost_slots"])
            for row in alive
            if queue in row["queues"] and not row["draining"] and row["slots"]
        )
        most = 2 * slots
        credit = most - int(outstanding[0]["n"])
        if credit <= 0:
            return [], most, credit, len(alive), set()
        allowed = sql.allowances(session, session.rows(*sql.ASKING_FOR_LIMITS) if metered else ())
        chosen: list[sql.Candidate] = []
        used: dict[sql.Limited, int] = defaultdict(int)
        spent = {key for key in allowed.of if allowed.spent(key)}
        names = [row["tenant"] for row in tenants]
        for _ in range(3):  # again without the agents whose allowance ran out on the way
            picked = self._fair(session, queue, names, credit - len(chosen), spent, {c.ref for c in chosen})
            before = len(spent)
            for candidate in picked:
                key = (candidate.tenant, candidate.agent or "")
                if allowed.spent(key):
                    spent.add(key)
                    continue
                if key in allowed.of:
                    allowed.take(key)
                    used[key] += 1
                chosen.append(candidate)
            if len(spent) == before or len(chosen) >= credit:
                break
        refs = [candidate.ref for candidate in chosen]
        crashpoint("publish.before_marking")
        sql.ring(session, refs, last=not used)
        if used:
            sql.spend_tokens(session, used)
        return refs, most, credit, len(alive), allowed.held()

    def _fair(
        self,
        session: Session,
        queue: QueueName,
        tenants: Sequence[str],
        credit: int,
        spent: set[sql.Limited],
        have: set[StepRef],
    ) -> list[sql.Candidate]:
        """Weighted fair queueing over ``tenants``; within one, by priority, every eighth by age."""
        asked: list[Statement] = []
        for tenant in tenants:
            blocked = {agent for owner, agent in spent if owner == tenant}
            ask = partial(sql.asking_for_candidates, session.dialect, queue, tenant, blocked=blocked)
            asked += [ask(limit=credit + len(have)), ask(limit=max(1, credit // AGEING_SHARE), oldest=True)]
        found = iter([sql.candidates(rows) for rows in session.together(*asked)])
        lines = {
            tenant: [c for c in _interleave(line, old) if c.ref not in have]
            for tenant, line, old in zip(tenants, found, found, strict=True)
        }
        floor = min((self._virtual[t] for t in lines if t in self._virtual), default=0.0)
        clock = {tenant: max(self._virtual.get(tenant, floor), floor) for tenant in lines}
        chosen: list[sql.Candidate] = []
        while len(chosen) < credit and any(lines.values()):
            tenant = min((t for t in lines if lines[t]), key=lambda t: (clock[t], t))
            chosen.append(lines[tenant].pop(0))
            clock[tenant] += 1.0 / max(0.001, self._weights.get(tenant, 1.0))
        self._virtual = clock
        return chosen


def _interleave(line: list[sql.Candidate], old: list[sql.Candidate]) -> list[sql.Candidate]:
    out: list[sql.Candidate] = []
    seen: set[StepRef] = set()
    waiting = list(old)
    for position, candidate in enumerate(line):
        if waiting and position % AGEING_SHARE == AGEING_SHARE - 1:
            aged = waiting.pop(0)
            if aged.ref not in seen:
                seen.add(aged.ref)
                out.append(aged)
        if candidate.ref not in seen:
            seen.add(candidate.ref)
            out.append(candidate)
    return out
