"""what retention asks: which jobs ended when, what came from a job, and who still reads a payload"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

#: "before": apply before the new code starts; "after": once no old process runs.
SAFE = "before"

_REFERENCES = (
    ("jobs", "input_ref"),
    ("jobs", "output_ref"),
    ("steps", "vars_ref"),
    ("steps", "output_ref"),
    ("steps", "given_ref"),
    ("attempts", "output_ref"),
    ("compensations", "input_ref"),
)


def upgrade() -> None:
    _partial("ix_jobs_ended", "jobs", ["finished_at", "id"], "finished_at IS NOT NULL")
    _partial("ix_jobs_origin", "jobs", ["origin"], "origin IS NOT NULL")
    for table, column in _REFERENCES:
        _partial(f"ix_{table}_{column}", table, [column], f"{column} IS NOT NULL")


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    clause = sa.text(where)
    op.create_index(name, table, columns, postgresql_where=clause, sqlite_where=clause)


def downgrade() -> None:
    for table, column in reversed(_REFERENCES):
        op.drop_index(f"ix_{table}_{column}", table)
    op.drop_index("ix_jobs_origin", "jobs")
    op.drop_index("ix_jobs_ended", "jobs")
