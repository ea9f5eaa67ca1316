"""Which desk a command talks to: ``ORCHESTRATOR_URL`` decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.cli.desk import Desk

if TYPE_CHECKING:
    from orchestrator.settings import Settings


@contextmanager
def open_desk(settings: Settings | None = None) -> Iterator[Desk]:
    """The desk that ``settings`` (else the environment's) choose; closed at the end of the block."""
    from orchestrator.settings import Settings

    desk: Desk
    settings = settings or Settings.load()
    if settings.url:
        from orchestrator.cli.remote import RemoteDesk

        desk = RemoteDesk(settings)
    else:
        from orchestrator.cli.direct import DirectDesk

        desk = DirectDesk(settings)
    try:
        yield desk
    finally:
        desk.close()
