"""Cursors: where the next page begins. Opaque to callers, so that what is inside may change."""

from __future__ import annotations

import base64
import binascii

from orchestrator.domain.errors import InvalidInput


def encode(position: str | None) -> str | None:
    return None if position is None else base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode(cursor: str | None) -> str | None:
    """Raises ``InvalidInput`` for a cursor that did not come from ``encode``."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        text = raw.decode()
    except (binascii.Error, ValueError):
        text = "\0"
    if not text.isprintable():
        raise InvalidInput("this cursor is none of ours.", mend="Pass `next` of the page before, unchanged.")
    return text
