"""What the figures were taken on: no names of hosts or directories, only what changes a figure."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.lab import Lab
from orchestrator.clock import Clock
from orchestrator.local.find import find_postgres, find_redis

PACKAGES = ("orchestrator", "celery", "kombu", "redis", "hiredis", "psycopg", "SQLAlchemy", "aiohttp", "dbos")


def describe(lab: Lab) -> dict[str, Any]:
    return {
        "date": dt.datetime.fromtimestamp(Clock().now(), dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said("git", "rev-parse", "--short", "HEAD", where=Path(__file__).parent) or "unknown",
        "cpu": _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo")) or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mb": int(_first(r"MemTotal:\s*(\d+)", Path("/proc/meminfo")) or 0) // 1024,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "postgresql": _number(_said(find_postgres() / "postgres", "--version")),
        "redis_server": _number(_said(find_redis(), "--version")),
        "versions": versions(),
        "postgresql_settings": dict(lab.postgres.settings),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _said(*command: str | Path, where: Path | None = None) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in command], cwd=where, capture_output=True, text=True, check=False, timeout=20
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _number(said: str) -> str:
    match = re.search(r"\d+(\.\d+)+", said)
    return match[0] if match else said


def _first(pattern: str, file: Path) -> str | None:
    try:
        match = re.search(pattern, file.read_text())
    except OSError:
        return None
    return match[1].strip() if match else None
