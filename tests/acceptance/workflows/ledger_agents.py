"""Agents that write down each call, so that a test can count what was really done, whatever the engine believes."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any


def work(ctx: Any, input: dict[str, Any]) -> dict[str, Any]:
    """Does ``input["name"]``. ``hold``: not done before that file exists. ``fail_until``: refuses until it does."""
    ledger = Path(input["ledger"])
    note(ledger, f"begin {input['name']}")
    if (hold := input.get("hold")) is not None:
        while not Path(hold).exists():
            ctx.progress()
            if ctx.over:
                raise RuntimeError("nobody waits any more")
            threading.Event().wait(0.02)
    if (wanted := input.get("fail_until")) is not None and not Path(wanted).exists():
        raise ValueError(f"{Path(wanted).name} is missing")
    note(ledger, f"end {input['name']}")
    return {"did": input["name"], "key": ctx.idempotency_key}


def note(ledger: Path, line: str) -> None:
    """One line, whole, even when many write."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
