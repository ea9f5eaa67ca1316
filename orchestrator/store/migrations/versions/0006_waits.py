"""waits: what people are asked; steps in doubt; jobs know how many of their steps wait for people"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

#: "before": apply before the new code starts; "after": once no old process runs.
SAFE = "before"


def upgrade() -> None:
    op.create_table(
        "waits",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("workflow", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("assignees", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deadline_at", sa.Double(), nullable=True),
        sa.Column("closed_at", sa.Double(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_waits_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_waits")),
    )
    op.create_index("ix_waits_job_id_path", "waits", ["job_id", "path"])
    op.create_index("ix_waits_tenant_state_created_at_id", "waits", ["tenant", "state", "created_at", "id"])
    still_open = sa.text("state = 'open'")
    op.create_index(
        "uq_waits_open",
        "waits",
        ["job_id", "path"],
        unique=True,
        postgresql_where=still_open,
        sqlite_where=still_open,
    )
    op.add_column("jobs", sa.Column("waits", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("waiting_since", sa.Double(), nullable=True))
    op.add_column("steps", sa.Column("doubt", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("steps", "doubt")
    op.drop_column("jobs", "waiting_since")
    op.drop_column("jobs", "waits")
    op.drop_table("waits")
