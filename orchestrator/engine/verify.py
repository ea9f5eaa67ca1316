"""Checks the promises against the live database. Read-only; each check is one statement, so one snapshot."""

from __future__ import annotations

from orchestrator.engine.context import Engine
from orchestrator.store.invariants import CHECKS, Violation, violations

__all__ = ["UNSEEN", "Violation", "checked", "verify"]

#: What SQL cannot show, and who shows it.
UNSEEN = {
    "I3": "effects per key at the agents' side: the fault tests' own ledger",
    "I10": "metrics equal SQL after a quiet minute: tests/integration",
}


def verify(engine: Engine) -> list[Violation]:
    """Every violation; none is the promise kept. Raises ``Unavailable``."""
    return engine.db.run(lambda session: violations(session, engine.lease + 5.0), readonly=True)


def checked() -> dict[str, str]:
    """The invariants that ``verify`` checks, with their promises."""
    return {name: promise for name, (promise, _) in CHECKS.items()}
