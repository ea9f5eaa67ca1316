"""Values above the inline size: stored once by content hash, compressed above a second size.

Retention removes a payload that nothing refers to and that nobody has written for ``OLD`` seconds. A writer that meets
one older than ``FRESH`` makes it young first, which locks it: either the writer comes first, and retention sees it
young, or retention does, and the writer finds it gone and writes it anew. A transaction that writes payloads must be
over within the difference.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.domain.outcome import Stored
from orchestrator.store import tables
from orchestrator.store.session import Session

FRESH: Final = 3600.0
OLD: Final = 86_400.0
#: Every column that refers to a payload.
REFERENCES: Final = tuple(
    (table.name, column.name)
    for table in tables.metadata.sorted_tables
    for column in table.columns
    if column.name.endswith("_ref")
)


@dataclass(frozen=True, slots=True)
class PayloadSizes:
    inline_bytes: int = 4096
    compress_bytes: int = 65536

    def prepare(self, text: str) -> Stored:
        """``text`` inline when small, else with its reference; nothing is written yet."""
        if len(text) <= self.inline_bytes // 4:  # cannot exceed the limit whatever its characters
            return Stored(text)
        raw = text.encode()
        return Stored(text) if len(raw) <= self.inline_bytes else Stored(text, hashlib.sha256(raw).hexdigest())


def write(session: Session, values: Iterable[Stored | None], compress_bytes: int = 65536) -> None:
    """Writes those of ``values`` that are references; one that is there already is kept, and stays."""
    rows = {}
    for value in values:
        if value is None or value.ref is None or value.text is None or value.ref in rows:
            continue
        raw = value.text.encode()
        packed = zlib.compress(raw, 6) if len(raw) > compress_bytes else raw
        codec = "zlib" if len(raw) > compress_bytes else "raw"
        rows[value.ref] = {"hash": value.ref, "codec": codec, "size": len(raw), "bytes": packed}
    if not rows:
        return
    session.execute(
        "UPDATE payloads SET created_at = {now} WHERE hash IN (SELECT hash FROM payloads WHERE"
        f" {session.dialect.any_of('hash', 'hashes')} AND created_at < {{now}} - :fresh ORDER BY hash {{for_update}})",
        {"hashes": json.dumps(sorted(rows)), "fresh": FRESH},
    )
    session.many(
        "INSERT INTO payloads (hash, codec, size, bytes, created_at)"
        " VALUES (:hash, :codec, :size, :bytes, {now}) ON CONFLICT (hash) DO NOTHING",
        sorted(rows.values(), key=lambda row: str(row["hash"])),
    )


def read(session: Session, values: Iterable[Stored | None]) -> dict[str, str]:
    """The texts behind the references among ``values``, by hash."""
    wanted = sorted(
        {value.ref for value in values if value is not None and value.ref is not None and value.text is None}
    )
    if not wanted:
        return {}
    found = session.rows(
        f"SELECT hash, codec, bytes FROM payloads WHERE {session.dialect.any_of('hash', 'hashes')}",
        {"hashes": json.dumps(wanted)},
    )
    return {
        row["hash"]: (zlib.decompress(row["bytes"]) if row["codec"] == "zlib" else bytes(row["bytes"])).decode()
        for row in found
    }


def text_of(value: Stored | None, found: dict[str, str]) -> str | None:
    """The value's JSON text, once ``read`` has fetched the references."""
    if value is None:
        return None
    return value.text if value.text is not None else found[value.ref or ""]


def referred_by(session: Session, jobs: Sequence[str]) -> list[str]:
    """The payloads that ``jobs`` refer to, by hash."""
    parts = []
    for table, column in REFERENCES:
        key = "id" if table == "jobs" else "job_id"
        parts.append(
            f"SELECT {column} AS hash FROM {table} WHERE {column} IS NOT NULL AND {session.dialect.any_of(key, 'jobs')}"
        )
    return [row["hash"] for row in session.rows(" UNION ".join(parts), {"jobs": json.dumps(list(jobs))})]


def beyond(session: Session, after: str, limit: int) -> list[str]:
    """The next payloads in order of their hashes."""
    rows = session.rows(
        "SELECT hash FROM payloads WHERE hash > :after ORDER BY hash LIMIT :limit", {"after": after, "limit": limit}
    )
    return [row["hash"] for row in rows]


def drop_unread(session: Session, hashes: Sequence[str], old: float = OLD) -> int:
    """Removes those of ``hashes`` that nothing refers to and nobody wrote for ``old`` seconds; waits for nobody."""
    unread = " AND ".join(
        f"NOT EXISTS (SELECT 1 FROM {table} r WHERE r.{column} = p.hash)" for table, column in REFERENCES
    )
    return session.execute(
        f"DELETE FROM payloads WHERE hash IN (SELECT p.hash FROM payloads p WHERE p.created_at < {{now}} - :old"
        f" AND {session.dialect.any_of('p.hash', 'hashes')} AND {unread} {{skip_locked}})",
        {"hashes": json.dumps(list(hashes)), "old": old},
    ).rowcount
