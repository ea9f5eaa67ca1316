"""What other services use to hand work over and to follow it.

    with Client("http://127.0.0.1:8080", api_key=KEY) as client:
        job = client.submit("contract-review", {"contract": text}, key="contract-17")
        done = client.wait(job.id, timeout=600)

``AsyncClient`` is the same with ``await``. ``submit(…, connection=…)`` writes the job in the caller's own SQL
transaction on the orchestrator's database: it exists exactly if that commits.
"""

from orchestrator.client.aio import AsyncClient
from orchestrator.client.blocking import Client
from orchestrator.client.words import Event, Job, NewJob

__all__ = ["AsyncClient", "Client", "Event", "Job", "NewJob"]
