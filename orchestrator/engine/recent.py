"""What this process wrote last of the jobs it goes on with in place, so that the next settle need not read it again.

Only of jobs of which nothing else can move by itself: every list around the step runs in order. Who else may change one
(a person who cancels, the scheduler) does so under its lock and with an event, so the number of its events says whether
what is remembered still holds: the write names that number and refuses if it is another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import JobRow, StepRow
from orchestrator.domain.states import STEP_DONE

#: Jobs remembered at most.
KEEP = 2000
#: Seconds after which the database is asked again, and with it what time it is.
TOO_OLD = 60.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """A job as it was committed ``at`` this process's monotonic clock."""

    job: JobRow
    rows: dict[StepPath, StepRow]
    at: float


class Recent:
    """Safe from any thread. What is taken is forgotten: whoever took it changes it, and remembers what it committed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[JobId, Remembered] = OrderedDict()
        #: By how much the database's clock is ahead of ours, at least; and since when that is looked at.
        self._ahead = 0.0
        self._since: float | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def take(self, job_id: JobId, at: float) -> Remembered | None:
        with self._lock:
            found = self._jobs.pop(job_id, None)
        return found if found is not None and at - found.at < TOO_OLD else None

    def learn(self, now: float, at: float) -> None:
        """It was the database's time ``now``, not after ``at``: of such answers the quickest tells its clock best."""
        with self._lock:
            if self._since is None or at - self._since > TOO_OLD:
                self._ahead, self._since = now - at, at
            self._ahead = max(self._ahead, now - at)

    def now(self, at: float) -> float:
        """The database's time ``at`` our own; it lags by what its quickest answer took on the way, and never leads."""
        with self._lock:
            return self._ahead + at

    def keep(self, job: JobRow, rows: Iterable[StepRow], at: float) -> None:
        """Large outputs are not kept: who needs one reads it."""
        kept = {row.path: row for row in rows if row.state not in STEP_DONE or row.output is None or not row.output.ref}
        with self._lock:
            self._jobs[job.id] = Remembered(job, kept, at)
            while len(self._jobs) > KEEP:
                self._jobs.popitem(last=False)
