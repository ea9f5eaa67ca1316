"""circuit breakers: their state, what they count, and which agents they watch"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

#: "before": apply before the new code starts; "after": once no old process runs.
SAFE = "before"


def upgrade() -> None:
    op.create_table(
        "breakers",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("until", sa.Double(), nullable=True),
        sa.Column("opened_at", sa.Double(), nullable=True),
        sa.Column("closed_at", sa.Double(), nullable=True),
        sa.Column("cooldown", sa.Double(), nullable=False),
        sa.Column("trips", sa.Integer(), nullable=False),
        sa.Column("streak", sa.Integer(), nullable=False),
        sa.Column("trip", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "name", name=op.f("pk_breakers")),
    )
    op.create_table(
        "breaker_calls",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "process", "slot", name=op.f("pk_breaker_calls")),
    )
    # An old process inserts limits without naming the new columns.
    op.add_column("agent_limits", sa.Column("breaker", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("agent_limits", sa.Column("provider", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("agent_limits", "provider")
    op.drop_column("agent_limits", "breaker")
    op.drop_table("breaker_calls")
    op.drop_table("breakers")
