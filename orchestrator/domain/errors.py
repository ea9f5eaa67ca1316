"""Every error that reaches a person, in one tree.

OrchestratorError
 ├─ UsageError             the caller's mistake: a 4xx, exit 2
 │   ├─ DefinitionError      a workflow file that cannot run (file, line, path)
 │   ├─ InvalidInput         input that misses its schema, oversize or not JSON
 │   ├─ NotFound             exit 3, 404
 │   ├─ Conflict             exit 4, 409: a wrong state, says which
 │   ├─ IdempotencyMismatch  same key, other body: 422
 │   ├─ Unauthorized         401
 │   └─ Forbidden            403
 ├─ ConfigError            a setting, exit 78
 ├─ Unavailable            a server we need is not reachable: 503, exit 69
 │   └─ Locked               a row is locked by another transaction for too long
 └─ LostLease              someone else owns the step now: normal, log and stop

An agent's failure is not an error here but data (``domain/outcome.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class OrchestratorError(Exception):
    """Base of all. ``code`` is stable and documented in docs/errors/<code>.md; ``mend`` says what to do next."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, mend: str | None = None, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.context = context

    def __str__(self) -> str:
        return f"{self.message} {self.mend}" if self.mend else self.message


class UsageError(OrchestratorError):
    code = "usage"
    status = 400
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a definition, with its place."""

    message: str
    path: str = ""
    line: int | None = None
    column: int | None = None
    nearest: str | None = None

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line is not None else ""
        where += (", " if where and self.path else "") + (f"at {self.path}" if self.path else "")
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{where}: {self.message}{hint}" if where else f"{self.message}{hint}"


class DefinitionError(UsageError):
    code = "invalid_definition"
    status = 422

    def __init__(self, problems: list[Problem], *, file: str | None = None) -> None:
        self.problems = problems
        self.file = file
        head = f"{file}: " if file else ""
        super().__init__("\n".join(f"{head}{problem}" for problem in problems))


class InvalidInput(UsageError):
    code = "invalid_input"
    status = 422


class PayloadTooLarge(UsageError):
    code = "payload_too_large"
    status = 413


class NotFound(UsageError):
    code = "not_found"
    status = 404
    exit_code = 3


class Gone(UsageError):
    code = "gone"
    status = 410
    exit_code = 3


class Conflict(UsageError):
    code = "wrong_state"
    status = 409
    exit_code = 4


class SubmitInProgress(Conflict):
    code = "submit_in_progress"


class IdempotencyMismatch(UsageError):
    code = "idempotency_mismatch"
    status = 422
    exit_code = 4


class Unauthorized(UsageError):
    code = "unauthorized"
    status = 401


class Forbidden(UsageError):
    code = "forbidden"
    status = 403


class ConfigError(OrchestratorError):
    code = "config"
    exit_code = 78


class SchemaOutdated(ConfigError):
    code = "schema_outdated"


class Unavailable(OrchestratorError):
    code = "unavailable"
    status = 503
    exit_code = 69


class Locked(Unavailable):
    """Another transaction kept a row locked for longer than ORCHESTRATOR_LOCK_TIMEOUT."""


class LostLease(OrchestratorError):
    """The fence token moved on: another attempt owns the step. Losing is normal: log it, stop."""

    code = "lost_lease"
