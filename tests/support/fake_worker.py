"""``celery -A tests.support.fake_worker worker``: a real worker command whose runtime only says what it does.

One JSON object a line on stdout. A step ``slow…`` takes 1.5 s after its claim, ``killer…`` kills its process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable

from orchestrator.canvas.app import make_app
from orchestrator.canvas.runtime import attach_runtime
from orchestrator.domain.ids import StepRef
from tests.support.fake_runtime import FakeRuntime
from workers.app import wants_prefork


def say(**facts: object) -> None:
    os.write(1, json.dumps(facts | {"pid": os.getpid()}).encode() + b"\n")


async def work(ref: StepRef, claimed: Callable[[], None]) -> None:
    claimed()
    say(event="began", path=ref.path, group=ref.group)
    if ref.path.startswith("killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    if ref.path.startswith("slow"):
        await asyncio.sleep(1.5)
    say(event="ran", path=ref.path)


class TellingRuntime(FakeRuntime):
    def start(self) -> None:
        say(event="runtime started")

    def stop(self) -> None:
        say(event="runtime stopped")

    def on_marker(self, queue: str, number: int) -> None:
        say(event="marker", queue=queue, number=number)

    def on_quarantine(self, _raw: bytes, _queue: str, reason: str) -> None:
        say(event="quarantined", reason=reason)


app = make_app(os.environ["BROKER"], concurrency=2, soft_shutdown_seconds=5)
app.set_default()
attach_runtime(app, lambda: TellingRuntime(work))
if wants_prefork(sys.argv):
    app.conf.worker_pool = "prefork"
