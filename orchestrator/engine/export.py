"""Ended jobs as lines of JSON in ``.jsonl.gz`` files, on the disk before anything is removed."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from orchestrator.domain.errors import ConfigError
from orchestrator.domain.ids import JobId
from orchestrator.engine.context import Engine
from orchestrator.engine.missing import no_job
from orchestrator.store import export, retention


def write(engine: Engine, folder: Path, jobs: Iterable[JobId]) -> Path:
    """Appends each of ``jobs`` to this process's file of the day; returns once the bytes are on the disk.

    A file belongs to one life of one process: what a crash cut off is the end of a file that nobody writes on. It is a
    sequence of gzip members, one a call, which every gunzip reads as one. Raises ``ConfigError`` when it cannot write.
    """
    day = datetime.fromtimestamp(engine.clock.now(), UTC).date().isoformat()
    file = folder / f"jobs-{day}-{engine.process}.jsonl.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        with file.open("ab") as out:
            _append(engine, out, jobs)
        if new:
            _sync_folder(folder)
    except OSError as error:
        raise ConfigError(
            f"jobs cannot be exported to {folder}: {error}.",
            mend="Nothing is removed till ORCHESTRATOR_RETENTION_EXPORT is writable.",
        ) from error
    return file


def _append(engine: Engine, out: IO[bytes], jobs: Iterable[JobId]) -> None:
    """One member, whole on the disk or not in the file at all."""
    start = out.seek(0, os.SEEK_END)
    try:
        with gzip.GzipFile(fileobj=out, mode="wb", filename="") as packed, io.TextIOWrapper(packed, "utf-8") as text:
            for job_id in jobs:
                text.writelines(lines(engine, job_id))
        out.flush()
        os.fsync(out.fileno())
    except BaseException:
        out.truncate(start)
        raise


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its directory is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lines(engine: Engine, job_id: JobId) -> Iterator[str]:
    """The job's line, in pieces, read in one transaction; nothing when it is not there."""
    with engine.db.connect(readonly=True) as session:
        yield from export.line(session, job_id)


def one(engine: Engine, job_id: JobId) -> Iterator[str]:
    """The job's line, whatever its state. Raises ``NotFound``, ``Gone``."""
    pieces = lines(engine, job_id)
    first = next(pieces, None)
    if first is None:
        raise engine.db.run(lambda session: no_job(session, job_id), readonly=True)
    yield first
    yield from pieces


def ended(engine: Engine, before: float) -> Iterator[JobId]:
    """Jobs that ended before ``before`` (seconds since the epoch) and may be removed, longest ended first."""
    place = retention.BEGINNING
    while True:
        rows = engine.db.run(lambda session: retention.unneeded(session, before, place, 100), readonly=True)  # noqa: B023
        yield from (JobId(row["id"]) for row in rows)
        if not rows:
            return
        place = (rows[-1]["finished_at"], rows[-1]["id"])
