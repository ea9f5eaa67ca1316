"""A disk that is really full: a tmpfs of its own, filled by a file, freed by deleting it. Needs root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

CHUNK = b"\0" * 65536


class SmallDisk:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Until not one byte more can be written."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (len(CHUNK), 4096):
                with suppress(OSError):
                    while file.write(CHUNK[:size]) == size:
                        pass

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """Mounted on a directory that every user may enter, until the end of the block."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED HERE: a small disk needs root, to mount it")
    path = Path(tempfile.mkdtemp(prefix="orchestrator-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        path.rmdir()
        pytest.skip(f"NOT TESTED HERE: a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()
