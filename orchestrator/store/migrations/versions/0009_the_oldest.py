"""the index for the oldest of a backlog: by tenant, and never mistaken for that of the feed"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

#: "before": apply before the new code starts; "after": once no old process runs.
SAFE = "before"


def upgrade() -> None:
    _replace(["queue", "tenant", "ready_at"], "state = 'ready' AND coalesce(dispatched_at, 0) = 0")


def downgrade() -> None:
    _replace(["queue", "ready_at"], "state = 'ready'")


def _replace(columns: list[str], where: str) -> None:
    op.drop_index("ix_steps_oldest", "steps")
    clause = sa.text(where)
    op.create_index("ix_steps_oldest", "steps", columns, postgresql_where=clause, sqlite_where=clause)
