"""what a person decided of a step, and how each attempt's input differed from the one before"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: "before": apply before the new code starts; "after": once no old process runs.
SAFE = "before"


def upgrade() -> None:
    for name in ("given", "given_ref", "chosen"):
        op.add_column("steps", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("changed", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "changed")
    for name in ("chosen", "given_ref", "given"):
        op.drop_column("steps", name)
