"""The command line. One file per group of commands; each imports what it needs when it runs: ``--help`` is quick.

Promises, for every command: data goes to stdout, talk to stderr; ``--json`` prints JSON; the exit code says how it
ended (``ending.py``); an error is one clear line that names what, where and the mend.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits. ``--debug``, anywhere, shows the traceback of an error."""
    from orchestrator.cli.app import app
    from orchestrator.cli.ending import explain, explain_bug
    from orchestrator.domain.errors import OrchestratorError

    given = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in given
    try:
        app(args=[word for word in given if word != "--debug"], prog_name="orchestrator")
    except OrchestratorError as error:
        if debug:
            raise
        sys.exit(explain(error))
    except Exception as error:
        if debug:
            raise
        sys.exit(explain_bug(error))
    sys.exit(0)
