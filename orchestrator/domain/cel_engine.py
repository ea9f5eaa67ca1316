"""The CEL engine, loaded where the first expression is compiled: many processes never get there."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def load() -> Any:
    """The module ``cel``, without its command line. Safe from any thread.

    The package imports that too, and with it prompt_toolkit, pygments and rich: a tenth of a second of every start, and
    megabytes of every process. An empty module holds its place meanwhile; who asks for ``cel.cli`` later gets the real.
    """
    if "cel" not in sys.modules:
        placeholder = ModuleType("cel.cli")
        sys.modules.setdefault("cel.cli", placeholder)
        try:
            import cel
        finally:
            if sys.modules.get("cel.cli") is placeholder:
                del sys.modules["cel.cli"]
    import cel

    return cel
