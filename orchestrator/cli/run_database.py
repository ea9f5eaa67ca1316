"""Which file a ``run`` works on: each unfinished run has a database of its own, a finished one's is used again.

``./.orchestrator/run.db``, then ``run-2.db`` and so on. So a run that was killed never comes back to life inside the
next one, whose agents may live elsewhere. A lock beside the file is held as long as its process lives: two runs cannot
share it, and a second ``--resume`` of one job is a ``Conflict``.
"""

from __future__ import annotations

import fcntl
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrator.domain.errors import Conflict, NotFound, UsageError
from orchestrator.domain.ids import JobId
from orchestrator.domain.states import JOB_TERMINAL, JobState
from orchestrator.engine import recover
from orchestrator.store import jobs
from orchestrator.store.database import Database

DEFAULT = Path(".orchestrator/run.db")
_HEADER = b"SQLite format 3\0"


@contextmanager
def for_new_job(chosen: Path | None) -> Iterator[Path]:
    """A database without an unfinished job, locked; ``chosen`` and no other if given. Raises ``Conflict``."""
    for path in [chosen] if chosen is not None else _names():
        lock = _lock(path)
        if lock is None:
            if path == chosen:
                raise Conflict(f"another run works on {path}.", mend="Wait for its end, or give another --db.")
            continue
        with lock:
            unfinished = _unfinished(path)
            if unfinished is None:
                yield path
                return
            if path == chosen:
                raise Conflict(
                    f"{path} holds job {unfinished}, which has not ended.",
                    mend=f"Finish it with --resume {unfinished}, or give another --db.",
                )


@contextmanager
def of_job(chosen: Path | None, job_id: JobId) -> Iterator[Path]:
    """The database that holds ``job_id``, locked. Raises ``NotFound``, or ``Conflict`` while another runs it."""
    places = [chosen] if chosen is not None else list(itertools.takewhile(Path.exists, _names()))
    for path in places:
        if not path.exists() or not _holds(path, job_id):
            continue
        lock = _lock(path)
        if lock is None:
            raise Conflict(f"another process runs job {job_id} now.", mend="Wait for its end, or stop it.")
        with lock:
            yield path
            return
    looked = ", ".join(map(str, places)) or str(DEFAULT)
    raise NotFound(f"no job {job_id} in {looked}.", mend="Start in the directory it was started in, or give its --db.")


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _names() -> Iterator[Path]:
    yield DEFAULT
    for number in itertools.count(2):
        yield DEFAULT.with_name(f"{DEFAULT.stem}-{number}{DEFAULT.suffix}")


def _lock(path: Path) -> IO[bytes] | None:
    """The lock, free again when the file is closed or the process is gone; None: another holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f"{path.name}.lock").open("wb")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}.", mend="Give a --db in a directory you may write to."
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _unfinished(path: Path) -> JobId | None:
    if not path.exists():
        return None
    states = [state for state in JobState if state not in JOB_TERMINAL]
    with _opened(path) as db:
        recover.migrate(db)
        found = db.run(lambda session: jobs.listing(session, tenant=None, states=states, limit=1), readonly=True)
    return found[0].id if found else None


def _holds(path: Path, job_id: JobId) -> bool:
    with _opened(path) as db:
        recover.migrate(db)
        return db.run(lambda session: jobs.get(session, job_id), readonly=True) is not None


@contextmanager
def _opened(path: Path) -> Iterator[Database]:
    try:
        with path.open("rb") as file:
            head = file.read(len(_HEADER))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", mend="Give another --db.") from None
    if head and head != _HEADER:
        raise UsageError(f"{path} is not a SQLite database.", mend="Give another --db.")
    db = Database(sqlite_url(path))
    try:
        yield db
    finally:
        db.close()
