"""One loop of the raw-SQL floor: ``python -m bench.floor_loop DSN``.

It reads job ids as JSON from stdin, says ``ready``, waits for a line, and answers when it began and ended, in seconds
of the machine's monotonic clock. Only psycopg beneath it.
"""

from __future__ import annotations

import json
import sys
import time

import psycopg

OUTPUT = json.dumps({"run": 1, "job": 1, "gaps": [0.001234] * 5, "at": 12345.678901})

FIRST = """UPDATE steps SET state = 'running', attempt = attempt + 1, fence = fence + 1, lease_owner = 'floor',
  lease_until = extract(epoch FROM clock_timestamp()) + 15, started_at = extract(epoch FROM clock_timestamp())
WHERE job_id = %(job)s AND path = %(path)s AND state = 'ready' RETURNING fence"""

FUSED = """WITH t AS (SELECT extract(epoch FROM clock_timestamp())::float8 AS now),
settled AS (
  UPDATE steps SET state = 'succeeded', output = %(output)s, finished_at = t.now, lease_owner = NULL, lease_until = NULL
  FROM t WHERE job_id = %(job)s AND path = %(path)s AND fence = %(fence)s AND state = 'running'
  RETURNING job_id, path, epoch, attempt, agent, generation, started_at),
attempted AS (
  INSERT INTO attempts (job_id, path, epoch, attempt, agent, generation, worker, started_at, ended_at, outcome,
    output, input_tokens, output_tokens, cost_usd)
  SELECT job_id, path, epoch, attempt, agent, generation, 'floor', started_at, t.now, 'succeeded', %(output)s, 0, 0, 0
  FROM settled, t),
told AS (
  INSERT INTO events (job_id, number, run, type, path, at, data)
  SELECT job_id, %(number)s, 1, 'step.succeeded', path, t.now, '{}' FROM settled, t)
UPDATE steps SET state = 'running', deps_left = 0, attempt = attempt + 1, fence = fence + 1, lease_owner = 'floor',
  lease_until = t.now + 15, ready_at = t.now, started_at = t.now
FROM t WHERE job_id = %(job)s AND path = %(next)s AND state = 'pending' AND EXISTS (SELECT FROM settled)
RETURNING fence"""


def main() -> None:
    jobs = json.loads(sys.stdin.readline())
    with psycopg.connect(sys.argv[1], autocommit=True, prepare_threshold=1) as connection:
        first = jobs[0] if jobs else ""
        found = connection.execute(
            "SELECT path FROM steps WHERE job_id = %s AND kind = 'agent' ORDER BY seq, path", (first,)
        ).fetchall()
        paths = [row[0] for row in found]
        print("ready", flush=True)
        sys.stdin.readline()
        started, steps = time.monotonic(), 0
        for job in jobs:
            steps += one_job(connection, job, paths)
        print(json.dumps({"start": started, "end": time.monotonic(), "steps": steps}), flush=True)


def one_job(connection: psycopg.Connection, job: str, paths: list[str]) -> int:
    row = connection.execute(FIRST, {"job": job, "path": paths[0]}).fetchone()
    assert row is not None, "the first step is not ready"
    for number, path in enumerate(paths):
        following = paths[number + 1] if number + 1 < len(paths) else None
        values = {"job": job, "path": path, "fence": row[0], "next": following, "number": number + 2, "output": OUTPUT}
        row = connection.execute(FUSED, values).fetchone()
        assert (row is None) == (following is None), "a step was not where it should be"
        row = row or (0,)
    return len(paths)


if __name__ == "__main__":
    main()
