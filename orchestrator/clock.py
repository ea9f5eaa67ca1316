"""Time, ids and randomness: the only place they come from, so that tests can hold them still.

Deadlines and leases are *not* compared with this clock but with the database's (``store/dialect.py``).
"""

from __future__ import annotations

import os
import random
import secrets
import time
from dataclasses import dataclass, field


def uuid7(milliseconds: int, randomness: bytes) -> str:
    """A time-ordered UUID as 32 hexadecimal digits (RFC 9562, section 5.7); ``randomness`` is 10 bytes."""
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(randomness, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{value:032x}"


@dataclass(slots=True)
class Clock:
    """The process's clock. ``seed`` fixes randomness for tests."""

    seed: int | None = None
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed) if self.seed is not None else random.SystemRandom()

    def now(self) -> float:
        """Seconds since the epoch, for logs and people; never for a lease."""
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def perf(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def uniform(self) -> float:
        """A number in [0, 1): the randomness of backoff jitter."""
        return self._random.random()

    def new_id(self) -> str:
        """A new job or row id: sorts by creation time."""
        return uuid7(int(time.time() * 1000), self._random.randbytes(10) if self.seed is not None else os.urandom(10))

    def new_secret(self) -> str:
        """192 random bits, URL-safe."""
        return secrets.token_urlsafe(24)
