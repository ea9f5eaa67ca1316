"""The two Celery tasks. Their bodies run in prefork children only; the asyncio pool takes steps from Celery itself."""

from __future__ import annotations

from typing import Any

from celery import current_app, shared_task, signals

from orchestrator.canvas.messages import MARKER, STEP, read_step
from orchestrator.canvas.runtime import RuntimeSlot, Verdict, runtime_of


@shared_task(name=STEP, bind=True, ignore_result=True)
def step(task: Any, job_id: str, path: str, epoch: int) -> Verdict | None:
    """Runs the step to its end, on this process's own event loop. Celery's tracer shows the verdict to the backend."""
    request = {"delivery_info": task.request.delivery_info, "group": task.request.group}
    ref = read_step((job_id, path, epoch), request)
    slot = runtime_of(task.app)
    return slot.loop.submit(slot.runtime.runner.run(ref, _acked_already)).result()


@shared_task(name=MARKER, bind=True, ignore_result=True)
def marker(task: Any, queue: str, number: int) -> None:
    runtime_of(task.app).runtime.on_marker(queue, number)


def _acked_already() -> None:
    """Celery acks when a child takes the task. One lost between that and its claim is found by the markers."""


@signals.worker_process_shutdown.connect
def stop_runtime(**_: Any) -> None:
    """A prefork child ends: whatever app it served, its runtime lets go of its connections."""
    slot = getattr(current_app, "orchestrator_runtime", None)
    if isinstance(slot, RuntimeSlot):
        slot.stop()
