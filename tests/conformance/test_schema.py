"""The migrations make the schema the code describes, and the hot statements find their rows by index."""

from __future__ import annotations

import json
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from orchestrator.domain.errors import SchemaOutdated
from orchestrator.store import migrations
from orchestrator.store.database import Database
from orchestrator.store.tables import VERSION_TABLE, metadata
from tests.support.bench import Bench


@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_migrations_and_tables_agree(url: str) -> None:
    db = Database(url)
    with pytest.raises(SchemaOutdated, match="orchestrator migrate"):
        migrations.check(db)
    assert migrations.upgrade(db) == (None, migrations.head())
    assert migrations.upgrade(db) == (migrations.head(), migrations.head())
    migrations.check(db)
    with db.engine.connect() as connection:
        differences = compare_metadata(
            MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}), metadata
        )
    db.close()
    assert [d for d in differences if "ix_steps_feed" not in str(d)] == []


def test_a_newer_schema_is_refused(url: str) -> None:
    db = Database(url)
    migrations.upgrade(db)
    with db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orchestrator_version SET version_num = '9999'")
    with pytest.raises(SchemaOutdated, match="newer"):
        migrations.check(db)
    db.close()


HOT = {
    "claim": (
        "UPDATE steps SET attempt = 1 WHERE job_id = 'x' AND path = 'a' AND epoch = 1 AND state || '' = 'ready'",
        "pk_steps",
    ),
    "feed": (
        """SELECT path FROM steps WHERE queue = 'q' AND state = 'ready' AND dispatched_at IS NULL AND tenant = 't'
        ORDER BY priority DESC, ready_at LIMIT 9""",
        "ix_steps_feed",
    ),
    "rung": (
        "SELECT count(*) FROM steps WHERE queue = 'q' AND state = 'ready' AND dispatched_at IS NOT NULL",
        "ix_steps_rung",
    ),
    "leases": ("UPDATE steps SET lease_until = 1 WHERE lease_owner = 'me' AND state = 'running'", "ix_steps_leases"),
    "timers": (
        "SELECT path FROM steps WHERE state = 'retrying' AND not_before <= 5 ORDER BY not_before LIMIT 9",
        "ix_steps_timers",
    ),
    "webhooks": ("SELECT job_id FROM webhooks WHERE due_at <= 5 ORDER BY due_at LIMIT 9", "ix_webhooks_due"),
    "ended": (
        """SELECT id FROM jobs WHERE state || '' IN ('succeeded','failed','cancelled') AND finished_at < 5
        AND (finished_at, id) > (0, '') ORDER BY finished_at, id LIMIT 9""",
        "ix_jobs_ended",
    ),
    "forks": ("SELECT 1 FROM jobs WHERE origin = 'x'", "ix_jobs_origin"),
    "payload": (
        "SELECT 1 FROM payloads p WHERE hash = 'h' AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.output_ref = p.hash)",
        "ix_steps_output_ref",
    ),
    "events": ("SELECT * FROM events WHERE job_id = 'x' AND number > 5 ORDER BY number LIMIT 9", "pk_events"),
}


@pytest.mark.parametrize("name", sorted(HOT))
def test_a_hot_statement_uses_its_index(bench: Bench, name: str) -> None:
    """A plan that scans the table would make history cost the living."""
    flow: dict[str, Any] = {
        "name": "plans",
        "agents": {"echo": {"kind": "scripted"}},
        "steps": [{"id": "f", "for_each": "${{ input }}", "do": {"agent": "echo"}}],
    }
    job = [bench.submit(flow, list(range(30))) for _ in range(10)][-1]
    bench.drive()
    statement, index = HOT[name]
    statement = statement.replace("'x'", f"'{job}'")
    with bench.db.connect() as session:
        if session.postgres:
            session.execute("ANALYZE steps")
            session.execute("SET LOCAL enable_seqscan = off")
            plan = json.dumps(session.value(f"EXPLAIN (FORMAT JSON) {statement}"))
        else:
            plan = str(session.rows(f"EXPLAIN QUERY PLAN {statement}"))
            index = {"pk_steps": "sqlite_autoindex_steps_1", "pk_events": "sqlite_autoindex_events_1"}.get(index, index)
    assert index in plan, plan
