"""A whole installation on real servers: scheduler and workers as processes of their own, to be killed at will.

``Cluster`` plays the part of ``orchestrator worker``'s small parent: it sees a worker die, buries it at once and starts
another, unless told otherwise. At the end of a test ``check`` holds every invariant against the database.
"""

from __future__ import annotations

import queue
import re
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from orchestrator import bootstrap
from orchestrator.clock import Clock
from orchestrator.domain.ids import Incarnation, JobId, StepPath
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import decisions, presence, queries
from orchestrator.engine.submit import Submission, submit, submit_many
from orchestrator.engine.verify import verify
from orchestrator.settings import Settings
from orchestrator.store import desk
from tests.support.cluster_children import PATIENCE, Child, Warm
from tests.support.ledger import Call, Ledger

#: The matrix's clockwork: everything that waits for seconds in production waits for tenths.
QUICK = {
    "LEASE_SECONDS": "2",
    "LEASE_RENEW_SECONDS": "0.5",
    "HEARTBEAT_SECONDS": "0.5",
    "TICK_SECONDS": "0.2",
    "MARKER_SECONDS": "0.5",
}
#: Looks at the database a second while waiting for jobs.
LOOKS = 15
ENDED = "('succeeded','failed','cancelled')"


class Cluster:
    """``with Cluster(…) as it:`` starts nothing; stops everything."""

    def __init__(self, warm: Warm, database: str, broker: str, directory: Path, **settings: str) -> None:
        """``settings`` are ORCHESTRATOR_ variables without their prefix, beside ``QUICK``."""
        self.clock = Clock()
        self.warm = warm
        self.directory = directory
        self.broker = broker
        self.ledger = Ledger(directory / "ledger.jsonl")
        self.environment = {
            "ORCHESTRATOR_DATABASE_URL": database,
            "ORCHESTRATOR_BROKER_URL": broker,
            "ORCHESTRATOR_AGENT_PACKAGES": "tests",
            "ORCHESTRATOR_LOG_LEVEL": "info",
            **{f"ORCHESTRATOR_{name}": value for name, value in {**QUICK, **settings}.items()},
        }
        named = {name.removeprefix("ORCHESTRATOR_").lower(): value for name, value in self.environment.items()}
        self.settings = Settings.load(env_file=None, **named)
        self.engine = bootstrap.build_engine(self.settings, "test")
        self.children: list[Child] = []
        #: Given to every child: ``{"seed": …, "late": …}`` puts a postman before its dispatcher.
        self.postman: dict[str, float] | None = None
        #: Seconds by which the wall clock of the children started from now on is wrong.
        self.skew = 0.0
        self.kills = 0
        #: How long after its death was known each worker was buried, in seconds.
        self.burials: list[float] = []
        self._deaths: queue.SimpleQueue[Child | None] = queue.SimpleQueue()
        self._parent = threading.Thread(target=self._be_parent, name="test-parent", daemon=True)
        self._failed: list[BaseException] = []

    def __enter__(self) -> Self:
        self._parent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deaths.put(None)
        self._parent.join(PATIENCE)
        for child in self.children:
            child.stopping = True
            if child.alive:
                child.signal(signal.SIGKILL)
        for child in self.children:
            child.wait_exit()
        bootstrap.close_engine(self.engine)

    # processes

    def start(self, role: str, arm: str = "", *, supervised: bool = False, **more: Any) -> Child:
        """Forks a child. ``environment`` in ``more`` changes its variables; the rest are its arguments."""
        changes = {f"ORCHESTRATOR_{name}": value for name, value in more.pop("environment", {}).items()}
        incarnation = f"{role}-test-{self.clock.new_id()[-12:]}"
        arguments = {"incarnation": incarnation, "postman": self.postman, "skew": self.skew, **more}
        log = self.directory / f"{role}.log"
        on_exit = self._deaths.put if supervised else None
        child = self.warm.fork(role, log, {**self.environment, **changes}, arguments, arm, on_exit)
        self.children.append(child)
        return child

    def worker(self, arm: str = "", *, ready: bool = True, supervised: bool = True, **environment: str) -> Child:
        """A worker. ``supervised``: when it dies it is buried at once, and another takes its place."""
        child = self._worker(environment, arm, supervised=supervised)
        if ready:
            child.wait_event("ready")
        return child

    def _worker(self, environment: dict[str, str], arm: str = "", *, supervised: bool = True) -> Child:
        child = self.start("worker", arm, supervised=supervised, environment=environment)
        child.environment = environment
        return child

    def scheduler(self, arm: str = "", **environment: str) -> Child:
        child = self.start("scheduler", arm, environment=environment)
        child.wait_event("ready")
        return child

    def stop(self, child: Child, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends a child for good: nobody takes its place."""
        child.stopping = True
        child.signal(signal.SIGCONT)
        child.signal(number)
        return child.wait_exit()

    def kill(self, child: Child) -> None:
        """SIGKILL, as the memory killer does it."""
        self.kills += 1
        child.signal(signal.SIGKILL)
        child.wait_exit()

    @property
    def workers(self) -> list[Child]:
        """Every worker there ever was."""
        return [child for child in self.children if child.role == "worker"]

    def successor(self, dead: Child, seconds: float = PATIENCE) -> Child:
        """The worker that took the place of ``dead``, ready."""
        found: list[Child] = []

        def follows() -> bool:
            found[:] = [child for child in self.children if child.follows is dead]
            return bool(found)

        self.wait_for(follows, f"a successor of {dead}", seconds)
        found[0].wait_event("ready")
        return found[0]

    def metric(self, child: Child, name: str) -> float:
        """The sum of a series on the ``/metrics`` of a child that was started with METRICS_PORT."""
        page = httpx.get(f"http://127.0.0.1:{child.environment['METRICS_PORT']}/metrics", timeout=10).text
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if re.match(rf"{name}[ {{]", line))

    def _be_parent(self) -> None:
        """One thread for all parents: buries, then starts the next child, in that order."""
        while (dead := self._deaths.get()) is not None:
            try:
                self._bury(dead)
                if not dead.stopping:
                    follower = self._worker(dead.environment)
                    follower.follows = dead
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits
                self._failed.append(error)

    def _bury(self, dead: Child) -> None:
        presence.bury(self.engine, Incarnation(dead.incarnation))
        assert dead.died_at is not None
        self.burials.append(self.clock.now() - dead.died_at)

    def _raise_failures(self) -> None:
        if self._failed:
            raise self._failed[0]

    # jobs

    def submit(self, workflow: dict[str, Any], input: Any = None, **more: Any) -> JobId:
        return submit(self.engine, Submission(Workflow.model_validate(workflow), input, **more)).job.id

    def submit_all(self, workflow: dict[str, Any], inputs: Sequence[Any], **more: Any) -> list[JobId]:
        """One job for each input, in transactions of 100."""
        model = Workflow.model_validate(workflow)
        jobs: list[JobId] = []
        for start in range(0, len(inputs), 100):
            batch = [Submission(model, one, **more) for one in inputs[start : start + 100]]
            jobs += [accepted.job.id for accepted in submit_many(self.engine, batch)]
        return jobs

    def wait(self, jobs: Iterable[JobId], seconds: float = PATIENCE) -> dict[str, int]:
        """Waits until every one has ended; the number of jobs by state."""
        wanted = list(jobs)
        deadline = self.clock.monotonic() + seconds
        while self.clock.monotonic() < deadline:
            self._raise_failures()
            states = self.states(wanted)
            if sum(states.get(state, 0) for state in ("succeeded", "failed", "cancelled")) == len(wanted):
                return states
            self.clock.sleep(1 / LOOKS)
        raise AssertionError(f"after {seconds:g} s: {self.states(wanted)}\n{self.stuck(wanted)}")

    def wait_for(self, true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Looks until ``true()`` is."""
        deadline = self.clock.monotonic() + seconds
        while not true():
            self._raise_failures()
            assert self.clock.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
            self.clock.sleep(1 / LOOKS)

    def states(self, jobs: Sequence[JobId]) -> dict[str, int]:
        rows = self.rows("SELECT state, count(*) AS n FROM jobs WHERE id = ANY(:jobs) GROUP BY state", jobs=list(jobs))
        return {row["state"]: row["n"] for row in rows}

    def stuck(self, jobs: Sequence[JobId]) -> str:
        """What keeps the first unfinished jobs, for a failure's message."""
        rows = self.rows(
            "SELECT s.job_id, path, s.state, epoch, fence, attempt, losses, lease_owner,"
            " lease_until - {now} AS lease, dispatched_at, mark, redispatches, not_before FROM steps s JOIN jobs j ON"
            f" j.id = s.job_id WHERE j.id = ANY(:jobs) AND j.state NOT IN {ENDED}"
            " AND s.state NOT IN ('succeeded','pending') ORDER BY job_id, path LIMIT 12",
            jobs=list(jobs),
        )
        queues = self.rows("SELECT * FROM queues")
        tails = "\n".join(f"--- {child}\n{child.tail(1500)}" for child in self.children[-3:])
        return "\n".join(map(str, [*rows, *queues])) + "\n" + tails

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        def work(session: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = session.rows(sql, values)
            return found

        return self.engine.db.run(work, readonly=True)

    def called_again(self) -> list[Call]:
        """Calls of steps that had settled before: the checkpoint was not honoured."""
        rows = self.rows("SELECT job_id, path, finished_at FROM steps WHERE kind = 'agent' AND state = 'succeeded'")
        return self.ledger.called_again({(row["job_id"], row["path"]): row["finished_at"] for row in rows})

    def job(self, job: JobId) -> dict[str, Any]:
        return queries.show_job(self.engine, job)

    def events(self, job: JobId) -> list[dict[str, Any]]:
        return queries.list_events(self.engine, job, limit=100_000)[0]

    def steps(self, job: JobId) -> dict[StepPath, dict[str, Any]]:
        return {step["path"]: step for step in queries.list_steps(self.engine, job, limit=100_000)[0]}

    def letters(self, job: JobId) -> list[dict[str, Any]]:
        return self.engine.db.run(lambda session: desk.letters(session, tenant="default", job_id=job, state=None))

    def questions(self, job: JobId) -> list[dict[str, Any]]:
        """What people are asked of a job, and nobody has decided."""
        return decisions.listing(self.engine, tenant="default", job=job)[0]

    # the end

    def check(self) -> None:
        """Every invariant that SQL shows holds, and nothing went wrong in the parents' thread."""
        self._raise_failures()
        found = verify(self.engine)
        assert not found, "\n".join(map(str, found))
