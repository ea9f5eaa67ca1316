"""Values above the inline size: stored once by content hash, compressed above a second size."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.domain.outcome import Stored
from orchestrator.store.database import Session


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
    """Writes those of ``values`` that are references; one that is there already is left alone."""
    rows = {}
    for value in values:
        if value is None or value.ref is None or value.text is None or value.ref in rows:
            continue
        raw = value.text.encode()
        packed = zlib.compress(raw, 6) if len(raw) > compress_bytes else raw
        codec = "zlib" if len(raw) > compress_bytes else "raw"
        rows[value.ref] = {"hash": value.ref, "codec": codec, "size": len(raw), "bytes": packed}
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
