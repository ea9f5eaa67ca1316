"""Points in time as callers write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator, Field

from orchestrator.domain.errors import InvalidInput


def _no_truth_value(value: object) -> object:
    """JSON's ``false`` is no number, whatever Python says."""
    if isinstance(value, bool):
        raise ValueError("neither a time nor a number of seconds")  # noqa: TRY004 - pydantic reports it
    return value


#: RFC 3339 (UTC if it does not say), or seconds since the epoch.
When = Annotated[datetime | Annotated[float, Field(allow_inf_nan=False)], BeforeValidator(_no_truth_value)]


def seconds(when: datetime | float | None) -> float | None:
    """Since the epoch. Raises ``InvalidInput`` for a time that no clock here can show."""
    if not isinstance(when, datetime):
        return when
    try:
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        raise InvalidInput(f"{when} is out of range.") from None
