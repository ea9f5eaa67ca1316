"""The command line's table of contents."""

from __future__ import annotations

import typer

from orchestrator.cli.breakers import breakers
from orchestrator.cli.compensations import compensations
from orchestrator.cli.dead_letters import dead_letters
from orchestrator.cli.decisions import decisions
from orchestrator.cli.dev import dev
from orchestrator.cli.doctor import doctor
from orchestrator.cli.explain import explain
from orchestrator.cli.export import export
from orchestrator.cli.jobs import jobs, submit
from orchestrator.cli.keys import keys
from orchestrator.cli.replays import audit, groups, operations
from orchestrator.cli.roles import api, scheduler
from orchestrator.cli.run import run
from orchestrator.cli.up_local import up_local
from orchestrator.cli.upkeep import config, migrate, quarantine, verify
from orchestrator.cli.worker import worker
from orchestrator.cli.workflows import compile_, schema, workflows

app = typer.Typer(
    name="orchestrator",
    help="Durable multi-agent workflows on Celery.",
    epilog="Settings are variables ORCHESTRATOR_…; see `orchestrator config show`. --debug shows an error's traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run)
app.command("dev")(dev)
app.command("up-local")(up_local)
app.command("api")(api)
app.command("worker")(worker)
app.command("scheduler")(scheduler)
app.command("migrate")(migrate)
app.command("submit")(submit)
jobs.command("explain")(explain)
jobs.command("compensations")(compensations)
jobs.command("export")(export)
app.add_typer(jobs, name="jobs")
dead_letters.command("groups")(groups)
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(decisions, name="decisions")
app.add_typer(operations, name="operations")
app.add_typer(breakers, name="breakers")
app.command("audit")(audit)
app.add_typer(workflows, name="workflows")
app.command("compile")(compile_)
app.command("schema")(schema)
app.add_typer(keys, name="keys")
app.add_typer(config, name="config")
app.command("verify")(verify)
app.command("doctor")(doctor)
app.add_typer(quarantine, name="quarantine")
