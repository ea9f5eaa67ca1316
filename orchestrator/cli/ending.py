"""How a command ends: its exit code, and the one place where an error becomes a line on stderr.

0 done · 1 failed · 2 usage · 3 not found · 4 conflict · 69 server unreachable · 78 configuration · 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Final

from orchestrator.domain.errors import OrchestratorError

FAILED: Final = 1
CONFIGURATION: Final = 78
INTERRUPTED: Final = 130


def say(message: str) -> None:
    """Talk: to stderr, at once."""
    print(message, file=sys.stderr, flush=True)


def explain(error: OrchestratorError) -> int:
    """Prints what went wrong and the mend, a line for each problem; answers the exit code."""
    lines = error.message.splitlines() or [type(error).__name__]
    if error.mend:
        lines[-1] = f"{lines[-1]} {error.mend}"
    for line in lines:
        say(f"error[{error.code}]: {line}" if line.strip() else line)
    return error.exit_code


def explain_bug(error: Exception) -> int:
    """Prints an error nobody foresaw; answers the exit code."""
    say(f"error[bug]: {type(error).__name__}: {error} This is a fault of ours: run the command again with --debug.")
    return FAILED
