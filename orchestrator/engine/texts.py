"""Large stored values that many steps read: fetched once, parsed once, per process.

Payloads are named by their content's hash, so what is kept can never be stale. A fan-out whose members all read one
large output costs one fetch and one parse instead of thousands.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from orchestrator.domain.json_values import loads
from orchestrator.domain.outcome import Stored
from orchestrator.store import payloads
from orchestrator.store.session import Session


class Texts:
    """Keeps at most ``limit`` characters of texts, and their parsed values. Safe to use from several threads."""

    def __init__(self, limit: int = 32 * 1024 * 1024) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._kept: set[str] = set()
        self._values: dict[str, Any] = {}

    def read(self, session: Session, values: Iterable[Stored | None]) -> dict[str, str]:
        """The texts behind the references among ``values``, by hash."""
        wanted = {value.ref: value for value in values if value is not None and value.ref and value.text is None}
        with self._lock:
            found = {ref: self._texts[ref] for ref in wanted if ref in self._texts}
            for ref in found:
                self._texts.move_to_end(ref)
        missing = [value for ref, value in wanted.items() if ref not in found]
        if missing:
            fetched = payloads.read(session, missing)
            found |= fetched
            self._keep(fetched)
        return found

    def value(self, text: str) -> Any:
        """``text`` parsed. The value of a kept text is shared: whoever hands it out to be changed copies it first."""
        with self._lock:
            known = self._values.get(text)
        if known is not None:
            return known
        value = loads(text)
        with self._lock:
            if text in self._kept:
                self._values[text] = value
        return value

    def _keep(self, fetched: dict[str, str]) -> None:
        with self._lock:
            for ref, text in fetched.items():
                if ref not in self._texts and len(text) <= self._limit // 4:
                    self._texts[ref] = text
                    self._kept.add(text)
                    self._size += len(text)
            while self._size > self._limit:
                _, text = self._texts.popitem(last=False)
                self._size -= len(text)
                self._kept.discard(text)
                self._values.pop(text, None)
