"""What a doctor asks of the database: read-only questions, each bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from orchestrator.store.database import Database
from orchestrator.store.session import Session

#: Answers shown of any one question.
MOST: Final = 50
#: Filesystems on which SQLite's locks and its shared memory cannot be trusted.
NETWORK_DISKS: Final = frozenset(
    "nfs nfs4 cifs smb2 smb3 smbfs 9p afs ceph glusterfs lustre fuse.sshfs fuse.s3fs fuse.glusterfs".split()
)
#: Seconds in which letters of one hour are held against the hour before.
HOUR: Final = 3600.0


def server_settings(session: Session) -> dict[str, str]:
    """PostgreSQL's settings that decide whether a commit survives, and its version; empty for SQLite."""
    if not session.postgres:
        return {}
    wanted = "'fsync', 'synchronous_commit', 'full_page_writes', 'server_version_num', 'max_connections'"
    return {
        r["name"]: r["setting"] for r in session.rows(f"SELECT name, setting FROM pg_settings WHERE name IN ({wanted})")
    }


def disk_of(db: Database) -> str | None:
    """The filesystem SQLite's file stands on, where the system tells (Linux); None elsewhere and for PostgreSQL."""
    file, mounts = db.sqlite_file, Path("/proc/mounts")
    if file is None or not mounts.exists():
        return None
    place = file.resolve()
    found, kind = -1, None
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(" ")
        point = Path(fields[1].encode().decode("unicode_escape")) if len(fields) > 2 else None
        if point is not None and len(point.parts) >= found and point in (place, *place.parents):
            found, kind = len(point.parts), fields[2]
    return kind


def starving_queues(session: Session, alive: float) -> list[dict[str, Any]]:
    """Queues with ready steps that no live, undrained worker takes: (queue, ready, oldest in seconds)."""
    rows = session.rows(
        "SELECT queue, count(*) AS ready, {now} - min(ready_at) AS oldest FROM steps WHERE state = 'ready'"
        " GROUP BY queue ORDER BY queue"
    )
    served: set[str] = set()
    for row in session.rows(
        "SELECT queues FROM workers WHERE NOT draining AND slots > 0 AND heartbeat_at > {now} - :alive",
        {"alive": alive},
    ):
        served.update(json.loads(row["queues"]))
    return [row for row in rows if row["queue"] not in served][:MOST]


def stuck_leases(session: Session, slack: float) -> list[dict[str, Any]]:
    """Leases that ended more than ``slack`` seconds ago and were not released, by worker."""
    return session.rows(
        "SELECT coalesce(lease_owner, 'nobody') AS worker, count(*) AS steps, {now} - min(lease_until) AS late,"
        " min(job_id) AS job FROM steps WHERE state = 'running' AND lease_until < {now} - :slack GROUP BY 1 LIMIT 50",
        {"slack": slack},
    )


def late_timers(session: Session, slack: float) -> dict[str, Any]:
    """Retries that are due for more than ``slack`` seconds: (steps, late)."""
    row = session.one(
        "SELECT count(*) AS steps, coalesce(max({now} - not_before), 0) AS late FROM steps WHERE state = 'retrying'"
        " AND not_before < {now} - :slack",
        {"slack": slack},
    )
    return row or {"steps": 0, "late": 0.0}


def silent_workers(session: Session, alive: float) -> list[dict[str, Any]]:
    """Processes with a row and no recent heartbeat, and those that lost slots to hung calls."""
    return session.rows(
        "SELECT name, incarnation, slots, lost_slots, {now} - heartbeat_at AS age FROM workers"
        " WHERE heartbeat_at <= {now} - :alive OR lost_slots > 0 ORDER BY heartbeat_at LIMIT 50",
        {"alive": alive},
    )


def letters_lately(session: Session) -> dict[str, Any]:
    """Open dead letters: how many, the oldest's age in seconds, and how many came in this hour and the one before."""
    row = session.one(
        "SELECT count(*) AS open, coalesce(max({now} - created_at), 0) AS oldest,"
        " coalesce(sum(CASE WHEN created_at > {now} - :hour THEN 1 ELSE 0 END), 0) AS hour,"
        " coalesce(sum(CASE WHEN created_at <= {now} - :hour AND created_at > {now} - 2 * :hour THEN 1 ELSE 0 END), 0)"
        " AS before FROM dead_letters WHERE state = 'open'",
        {"hour": HOUR},
    )
    assert row is not None
    return row


def quarantined_lately(session: Session, seconds: float) -> int:
    return int(session.value("SELECT count(*) FROM quarantine WHERE at > {now} - :seconds", {"seconds": seconds}))


def agent_kinds(session: Session) -> set[str]:
    """The kinds of agents in registered workflows and in those of the newest jobs, 200 definitions at most."""
    rows = session.rows("SELECT definition FROM workflows ORDER BY created_at DESC LIMIT 200")
    return {
        str(agent.get("kind"))
        for row in rows
        for agent in (json.loads(row["definition"]).get("agents") or {}).values()
        if isinstance(agent, dict)
    }


def usable_keys(session: Session) -> int:
    return int(session.value("SELECT count(*) FROM api_keys WHERE revoked_at IS NULL"))
