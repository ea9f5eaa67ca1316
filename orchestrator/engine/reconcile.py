"""Repairs every gap, through the same claim path: guarded statements, safe with any number of schedulers.

One cheap question a tick says which duties have something to do; an idle scheduler sends two statements a second.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.errors import Locked, OrchestratorError, Unavailable
from orchestrator.domain.ids import Incarnation, QueueName
from orchestrator.engine import cancel, release, replays
from orchestrator.engine.context import Engine
from orchestrator.engine.deliver import Courier
from orchestrator.engine.retention import Retention
from orchestrator.store import breakers, jobs, workers
from orchestrator.store import feed as sql
from orchestrator.store.session import Session

log = logging.getLogger("orchestrator.reconcile")

#: After the database was away nobody counts as dead for so many seconds: no live process could beat or renew, and its
#: calls, which ran on, must not be made again.
QUIET_AFTER_OUTAGE = 5.0

#: Seconds between two tidyings, and after which no breaker's window (an hour at most) reaches a call.
TIDY, OLD_CALLS = 600.0, 7200.0

_PULSE = (
    "SELECT EXISTS(SELECT 1 FROM steps WHERE state = 'running' AND lease_until <= {now}) AS leases,"
    " EXISTS(SELECT 1 FROM steps WHERE state = 'retrying' AND not_before <= {now}) AS timers,"
    " EXISTS(SELECT 1 FROM steps WHERE state = 'ready' AND dispatched_at IS NULL) AS backlog,"
    " EXISTS(SELECT 1 FROM steps WHERE state = 'ready' AND dispatched_at IS NOT NULL) AS rung,"
    " EXISTS(SELECT 1 FROM workers WHERE heartbeat_at <= {now} - :silent) AS silent,"
    " EXISTS(SELECT 1 FROM jobs WHERE state IN ('queued','running','waiting') AND waits = 0 AND deadline_at <= {now})"
    " AS overdue,"
    " EXISTS(SELECT 1 FROM operations WHERE state = 'running') AS operations,"
    " EXISTS(SELECT 1 FROM webhooks WHERE due_at <= {now}) AS webhooks"
)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Times in seconds."""

    tick: float = 1.0
    marker: float = 1.5
    #: A published step is lost when a later marker was seen so long ago.
    grace: float = 2.0
    #: A process is silent after so long; then its lock is tried.
    silent: float = 2.0
    #: A process nobody could prove dead is forgotten after so long; its leases end by themselves.
    forget: float = 60.0
    redispatch_batch: int = 500


class Watermarks:
    """Which marker of each queue was seen at least ``grace`` seconds ago, however many came since."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        #: Per queue: (when it was first known here, marker), oldest first; the first is the watermark once old enough.
        self._seen: dict[QueueName, deque[tuple[float, int]]] = defaultdict(deque)

    def below(self, seen: Mapping[QueueName, int], now: float) -> dict[QueueName, int]:
        """The watermarks, given the markers that are ``seen`` by ``now`` (monotonic seconds)."""
        out = {}
        for queue, number in seen.items():
            known = self._seen[queue]
            if not known or number > known[-1][1]:
                known.append((now, number))
            while len(known) > 1 and known[1][0] <= now - self._grace:
                known.popleft()
            if known[0][0] <= now - self._grace:
                out[queue] = known[0][1]
        return out


class Reconciler:
    """``is_dead`` tries the proof of death that the database cannot give (a SQLite process's file lock).

    ``courier`` sends what webhooks are owed; it is closed with this. None: another process does.
    """

    def __init__(
        self,
        engine: Engine,
        rhythm: Rhythm | None = None,
        is_dead: Callable[[str], bool] = lambda _: False,
        on_broker: Callable[[bool], None] = lambda _: None,
        redispatched: Callable[[str, int], None] = lambda _reason, _count: None,
        expired: Callable[[int], None] = lambda _count: None,
        courier: Courier | None = None,
        retention: Retention | None = None,
        dead_messages: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engine = engine
        self._rhythm = rhythm or Rhythm()
        self._is_dead = is_dead
        self._on_broker = on_broker
        self._redispatched = redispatched
        self._expired = expired
        self._courier = courier
        self._retention = retention
        self._dead_messages = dead_messages
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._marked: dict[QueueName, float] = {}
        self._broker_up = True
        self._known_epoch: str | None = None
        self._no_proof_until = 0.0
        self._watermarks = Watermarks(self._rhythm.grace)
        self._tidy_at = engine.clock.monotonic() + TIDY

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="orchestrator-reconcile", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._courier is not None:
            self._courier.close()
        try:
            self._engine.db.run(lambda session: workers.drop_duties(session, self._engine.process))
        except OrchestratorError as error:
            log.warning("reconcile.leave_failed", extra={"error": str(error)})

    def _run(self) -> None:
        while not self._stop.wait(self._rhythm.tick):
            try:
                self.tick()
            except Unavailable as error:
                # Nobody's heartbeat was written either, and locks fell with their connections: prove no deaths now.
                self._no_proof_until = self._engine.clock.monotonic() + QUIET_AFTER_OUTAGE
                log.warning("reconcile.waiting", extra={"error": str(error)})
            except OrchestratorError as error:
                log.warning("reconcile.failed", extra={"error": str(error)})
            except Exception:  # a duty that fails must not stop the others for ever
                log.exception("reconcile.bug")

    def tick(self) -> None:
        """One round of every duty that has something to do."""
        pulse = self._engine.db.run(lambda s: s.one(_PULSE, {"silent": self._rhythm.silent}), readonly=True) or {}
        self.watch_broker()
        if self._engine.clock.monotonic() >= self._no_proof_until:
            self._take_from_the_dead(silent=pulse["silent"], leases=pulse["leases"])
        if pulse["timers"]:
            crashpoint("timer.fire")
            self._engine.feed.wake(self._engine.db.run(sql.due_timers))
        if pulse["overdue"]:
            for job_id in self._engine.db.run(jobs.overdue, readonly=True):
                self._unless_locked(partial(cancel.expire, self._engine, job_id))
        if pulse["rung"]:
            self._unless_locked(self.find_lost)
            if self._leads("markers"):
                self._unless_locked(self.send_markers)
        if pulse["backlog"]:
            self._engine.feed.wake(self._engine.db.run(sql.queues_with_backlog, readonly=True))
        if pulse["webhooks"] and self._courier is not None:
            self._courier.wake()
        if pulse["operations"]:
            replays.advance(self._engine)
        self._keep_house()

    def _keep_house(self) -> None:
        """What has a rhythm of its own."""
        if self._retention is not None and self._retention.due() and self._leads("retention"):
            self._retention.work()
        self._dead_messages()
        self._tidy()

    def _tidy(self) -> None:
        """What nobody reads any more: now and then, by one scheduler."""
        now = self._engine.clock.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY
            if self._leads("tidy"):
                self._engine.db.run(partial(breakers.forget_old_calls, older=OLD_CALLS))

    def _unless_locked(self, duty: Callable[[], object]) -> None:
        """A row that somebody keeps locked holds up what needs it, and nothing else."""
        try:
            duty()
        except Locked as error:
            log.warning("reconcile.locked", extra={"error": str(error)})

    def _leads(self, duty: str) -> bool:
        """Whether this scheduler does ``duty`` now. Two that both think so cost work, never correctness."""
        holder, seconds = self._engine.process, 5 * self._rhythm.tick
        return self._engine.db.run(lambda session: workers.hold_duty(session, duty, holder, seconds))

    def _take_from_the_dead(self, *, silent: bool, leases: bool) -> None:
        if silent:
            self.bury_dead()
        if leases:
            self._unless_locked(lambda: self._expired(release.expire_leases(self._engine)))

    def bury_dead(self) -> None:
        """Releases at once what provably dead processes held: their lock is free and their heartbeat is old."""
        for row in self._engine.db.run(lambda s: workers.silent(s, self._rhythm.silent), readonly=True):
            who = Incarnation(row["incarnation"])
            if self._dead(row):
                self._unless_locked(partial(self._bury, who))

    def _bury(self, who: Incarnation) -> None:
        count = release.bury(self._engine, who)
        log.warning("worker.buried", extra={"worker": who, "released": count})

    def _dead(self, row: dict[str, object]) -> bool:
        def work(session: Session) -> tuple[bool, float]:
            number = row["lock"]
            free = session.postgres and isinstance(number, int) and workers.lock_is_free(session, number)
            return bool(free), session.now()

        free, now = self._engine.db.run(work)
        beat = row["heartbeat_at"]
        old = isinstance(beat, float) and beat < now - self._rhythm.forget
        return free or old or self._is_dead(str(row["incarnation"]))

    def find_lost(self) -> None:
        """Messages that a seen marker proves lost go back to the backlog."""
        rhythm = self._rhythm
        seen = self._engine.db.run(sql.markers_seen, readonly=True)
        lost: dict[QueueName, int] = {}
        for queue, number in self._watermarks.below(seen, self._engine.clock.monotonic()).items():
            work = partial(sql.forget_lost, queue=queue, seen=number, grace=rhythm.grace, limit=rhythm.redispatch_batch)
            if count := self._engine.db.run(work):
                lost[queue] = count
        if lost:
            self._redispatched("lost", sum(lost.values()))
            log.warning("steps.lost", extra={"count": sum(lost.values())})
            self._engine.feed.wake(lost)

    def send_markers(self) -> None:
        now = self._engine.clock.monotonic()
        for queue in self._engine.db.run(sql.queues_rung, readonly=True):
            if now - self._marked.get(queue, -1e9) < self._rhythm.marker:
                continue
            self._marked[queue] = now
            number = self._engine.db.run(partial(sql.next_marker, queue=queue))
            self._engine.feed.dispatcher.publish_marker(queue, number)

    def watch_broker(self) -> None:
        """A broker that came back empty is known by its missing key: every published step is dispatched again."""
        try:
            epoch = self._engine.feed.dispatcher.broker_epoch()
        except Unavailable:
            self._set_broker(up=False)
            return
        was_down = not self._broker_up
        self._set_broker(up=True)
        if epoch is None and not was_down:
            return

        def work(session: Session) -> list[QueueName]:
            known = workers.note(session, "broker_epoch")
            if epoch is not None and known == epoch:
                return []
            if epoch is not None:
                workers.write_note(session, "broker_epoch", epoch)
            return sql.forget_all(session) if known is not None or was_down else []

        if epoch is not None and epoch == self._known_epoch and not was_down:
            return
        lost = self._engine.db.run(work)
        self._known_epoch = epoch
        if lost:
            self._redispatched("broker", len(lost))
            log.warning("broker.lost_data", extra={"count": len(lost)})
            self._engine.feed.wake(set(lost))

    def _set_broker(self, *, up: bool) -> None:
        if up != self._broker_up:
            log.warning("broker.up" if up else "broker.down")
        self._broker_up = up
        self._on_broker(up)
