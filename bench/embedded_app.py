"""Everything in one process on a SQLite file, FULL: ``python -m bench.embedded_app FILE``.

It answers each line of JSON with one: ``{"submit": shape, "inputs": […]}``, or ``{"states": 0}``, how many of the jobs
submitted so far are in which state. It ends with its input.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from bench.columns.ours import workflow_of
from bench.shapes import Shape
from orchestrator.engine.context import Engine
from orchestrator.engine.submit import Submission, submit_many
from orchestrator.settings import Settings
from workers.embedded import Embedded

STATES = "SELECT state, count(*) AS n FROM jobs GROUP BY state"


def answer(engine: Engine, asked: dict[str, Any]) -> dict[str, int]:
    if "submit" in asked:
        shape = workflow_of(Shape(**asked["submit"]))
        return {"accepted": len(submit_many(engine, [Submission(shape, one) for one in asked["inputs"]]))}
    rows = engine.db.run(lambda session: session.rows(STATES), readonly=True)
    return Counter({row["state"]: row["n"] for row in rows})


def settings_of(file: str | Path, **more: str) -> Settings:
    """Of the embedded engine on the SQLite file ``file``, each commit on the disk."""
    return Settings.load(
        env_file=None,
        database_url=f"sqlite:///{file}",
        sqlite_profile="durable",
        agent_packages="bench",
        log_level="warning",
        **more,
    )


def main(file: str) -> None:
    with Embedded(settings_of(file, worker_concurrency="100")) as it:
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(it.engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
