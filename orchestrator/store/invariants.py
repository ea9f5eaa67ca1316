"""The promises as queries that return violations: run after every fault test, by ``verify``, and as a health check.

Each answers rows of (job_id, path, detail); none means it holds. I3 (effects at the agents' side) and I10 (metrics) are
not visible from SQL: tests check them. I7 comes with budgets. Epoch 0 is a result that a fork took over: its attempt is
in the job it came of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from orchestrator.store.session import Session

_OPEN = "('queued','running','waiting','paused','cancelling','compensating')"
_ENDED = "('succeeded','failed','cancelled')"
_STEP_ENDED = "('succeeded','skipped','failed','cancelled','compensated')"
_ASKS = "(s.state = 'in_doubt' OR (s.state = 'waiting' AND s.kind = 'agent'))"

CHECKS: Final[dict[str, tuple[str, str]]] = {
    "I1": (
        "every accepted job has ended or can move: a ready step, a lease, a timer or a wait",
        (
            f"SELECT j.id AS job_id, '' AS path, j.state AS detail FROM jobs j WHERE j.state IN {_OPEN} AND NOT EXISTS"
            " (SELECT 1 FROM steps s WHERE s.job_id = j.id AND (s.state = 'ready'"
            " OR (s.state = 'running' AND s.lease_until IS NOT NULL)"
            " OR (s.state = 'retrying' AND s.not_before IS NOT NULL)))"
            " AND NOT EXISTS (SELECT 1 FROM waits w WHERE w.job_id = j.id AND w.state = 'open')"
        ),
    ),
    "I1b": (
        "a step that asks a person has an open wait, a wait has its step, and the job counts them",
        (
            f"SELECT s.job_id, s.path, s.state || ' without a wait' AS detail FROM steps s WHERE {_ASKS}"
            " AND NOT EXISTS (SELECT 1 FROM waits w WHERE w.job_id = s.job_id AND w.path = s.path AND w.state = 'open')"
            " UNION ALL SELECT w.job_id, w.path, 'a wait without its step' AS detail FROM waits w"
            " WHERE w.state = 'open' AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.job_id = w.job_id"
            f" AND s.path = w.path AND {_ASKS})"
            " UNION ALL SELECT j.id, '', j.waits || ' waits counted' AS detail FROM jobs j WHERE j.waits <>"
            " (SELECT count(*) FROM waits w WHERE w.job_id = j.id AND w.state = 'open')"
        ),
    ),
    "I1c": (
        "a webhook that is owed an event is stopped or has a time for its next try",
        (
            "SELECT w.job_id, '' AS path, 'owed ' || w.upto || ', delivered ' || w.position AS detail FROM webhooks w"
            " WHERE w.state = 'active' AND w.position < w.upto AND w.due_at IS NULL"
        ),
    ),
    "I2": (
        "one committed result for each step and epoch",
        (
            "SELECT a.job_id, a.path, 'epoch ' || a.epoch || ': ' || count(*) || ' results' AS detail FROM attempts a"
            " WHERE a.outcome = 'succeeded' GROUP BY a.job_id, a.path, a.epoch HAVING count(*) > 1"
        ),
    ),
    "I2b": (
        "a succeeded agent step has its checkpoint and its attempt",
        (
            "SELECT s.job_id, s.path, 'no attempt or no output' AS detail FROM steps s WHERE s.kind = 'agent'"
            " AND s.state = 'succeeded' AND NOT s.degraded AND s.epoch > 0"
            " AND ((s.output IS NULL AND s.output_ref IS NULL)"
            " OR NOT EXISTS (SELECT 1 FROM attempts a WHERE a.job_id = s.job_id AND a.path = s.path"
            " AND a.epoch = s.epoch AND a.outcome = 'succeeded') AND NOT EXISTS"
            " (SELECT 1 FROM waits w WHERE w.job_id = s.job_id AND w.path = s.path AND w.state = 'decided'))"
        ),
    ),
    "I4": (
        "a join fires once",
        (
            "SELECT e.job_id, e.path, 'decided ' || count(*) || ' times in run ' || e.run AS detail FROM events e"
            " WHERE e.type = 'join.decided' GROUP BY e.job_id, e.path, e.run HAVING count(*) > 1"
        ),
    ),
    "I4b": (
        "a join's numbers are those of its members",
        (
            "SELECT p.job_id, p.path, 'counts ' || p.succeeded || '+' || p.failed || '+' || p.cancelled AS detail"
            " FROM steps p JOIN steps c ON c.job_id = p.job_id AND c.parent = p.path WHERE p.width IS NOT NULL"
            " GROUP BY p.job_id, p.path, p.succeeded, p.failed, p.cancelled"
            " HAVING p.succeeded <> sum(CASE WHEN c.state IN ('succeeded','skipped','compensating','compensated')"
            " THEN 1 ELSE 0 END)"
            " OR p.failed <> sum(CASE WHEN c.state = 'failed' THEN 1 ELSE 0 END)"
            " OR p.cancelled <> sum(CASE WHEN c.state = 'cancelled' THEN 1 ELSE 0 END)"
        ),
    ),
    "I5": (
        "a job that ended failed owes nothing that is neither undone nor parked; nothing else is undone",
        (
            "SELECT c.job_id, c.path, 'still owed' AS detail FROM compensations c JOIN jobs j ON j.id = c.job_id"
            " WHERE c.state = 'owed' AND (j.state = 'failed' OR (j.state = 'succeeded' AND EXISTS"
            " (SELECT 1 FROM steps f WHERE f.job_id = c.job_id AND f.state = 'failed'"
            " AND (f.path = c.path OR f.path || '/' = substr(c.path, 1, length(f.path) + 1)))))"
            " UNION ALL SELECT c.job_id, c.path, 'stuck, and not on the desk' FROM compensations c"
            " WHERE c.state = 'stuck' AND NOT EXISTS (SELECT 1 FROM steps u JOIN dead_letters d ON d.job_id = u.job_id"
            " AND d.path = u.path WHERE u.job_id = c.job_id AND u.undoes = c.number)"
            " UNION ALL SELECT s.job_id, s.path, 'compensated without a debt' FROM steps s"
            " WHERE s.state = 'compensated' AND NOT EXISTS (SELECT 1 FROM compensations c"
            " WHERE c.job_id = s.job_id AND c.path = s.path AND c.state = 'undone')"
            " UNION ALL SELECT s.job_id, s.path, 'compensating in a job that is ' || j.state FROM steps s"
            " JOIN jobs j ON j.id = s.job_id WHERE s.state = 'compensating' AND j.state <> 'compensating'"
        ),
    ),
    "I5b": (
        "what lies in no fan-out is undone in the reverse order of completion",
        (
            "SELECT a.job_id, a.path, 'undone before ' || b.path AS detail FROM compensations a JOIN compensations b"
            " ON b.job_id = a.job_id AND b.number > a.number JOIN steps u ON u.job_id = a.job_id"
            " AND u.undoes = a.number JOIN steps v ON v.job_id = b.job_id AND v.undoes = b.number"
            " AND v.parent = u.parent WHERE u.started_at < v.started_at AND u.epoch = 1 AND v.epoch = 1"
        ),
    ),
    "I6": (
        "event numbers are gap-free",
        (
            "SELECT j.id AS job_id, '' AS path, j.events || ' counted, ' || count(e.number) || ' stored' AS detail"
            " FROM jobs j LEFT JOIN events e ON e.job_id = j.id GROUP BY j.id, j.events"
            " HAVING count(e.number) <> j.events OR coalesce(max(e.number), 0) <> j.events"
        ),
    ),
    "I8": (
        "every running step has a live or just expired lease",
        (
            "SELECT job_id, path, 'lease of ' || coalesce(lease_owner, 'nobody') AS detail FROM steps"
            " WHERE state = 'running' AND (lease_until IS NULL OR lease_until < {now} - :slack)"
        ),
    ),
    "I9": (
        "a failed job has one dead letter that says why, and an open letter has a failed job",
        (
            "SELECT j.id AS job_id, '' AS path, 'failed without a letter' AS detail FROM jobs j"
            " WHERE j.state = 'failed'"
            " AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.job_id = j.id AND d.run = j.run"
            " AND d.state IN ('open','discarded'))"
            " UNION ALL SELECT d.job_id, d.path, 'open letter of a job that is ' || j.state FROM dead_letters d"
            " JOIN jobs j ON j.id = d.job_id WHERE d.state = 'open' AND j.state <> 'failed'"
            " AND j.state <> 'compensating' AND substr(d.path, 1, 5) <> '~undo'"
        ),
    ),
    "I11": (
        "a job that ended holds no step, lease or timer",
        (
            f"SELECT s.job_id, s.path, s.state AS detail FROM steps s JOIN jobs j ON j.id = s.job_id"
            f" WHERE j.state IN {_ENDED} AND (s.state NOT IN {_STEP_ENDED} OR s.lease_owner IS NOT NULL"
            " OR s.not_before IS NOT NULL)"
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    promise: str
    job_id: str
    path: str
    detail: str


def violations(session: Session, slack: float = 20.0, limit: int = 100) -> list[Violation]:
    """What does not hold, at most ``limit`` a check; ``slack`` is the lease and 5 s more."""
    return [
        Violation(name, promise, row["job_id"], row["path"] or "", str(row["detail"]))
        for name, (promise, query) in CHECKS.items()
        for row in session.rows(f"SELECT * FROM ({query}) v LIMIT {int(limit)}", {"slack": slack})
    ]
