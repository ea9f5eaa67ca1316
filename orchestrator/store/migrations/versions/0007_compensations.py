"""the ledger of what is owed; a job may have several open letters, one a step"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

#: "before": apply before the new code starts; "after": once no old process runs.
SAFE = "before"

_OPEN = sa.text("state = 'open'")


def upgrade() -> None:
    op.create_table(
        "compensations",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("input", sa.Text(), nullable=True),
        sa.Column("input_ref", sa.Text(), nullable=True),
        sa.Column("known", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("paid", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_compensations_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_compensations")),
    )
    op.add_column("steps", sa.Column("undoes", sa.Integer(), nullable=True))
    _letters_unique_by("job_id", "path")


def _letters_unique_by(*columns: str) -> None:
    op.drop_index("uq_dead_letters_open", "dead_letters")
    op.create_index(
        "uq_dead_letters_open", "dead_letters", list(columns), unique=True, postgresql_where=_OPEN, sqlite_where=_OPEN
    )


def downgrade() -> None:
    _letters_unique_by("job_id")
    op.drop_column("steps", "undoes")
    op.drop_table("compensations")
