"""``dev``: API, scheduler and worker in this process, on SQLite; the workflow files of a directory are followed."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.ending import explain, say
from orchestrator.cli.workflows import read_workflow
from orchestrator.domain.errors import OrchestratorError, UsageError

if TYPE_CHECKING:
    from orchestrator.engine.context import Engine

WATCH_SECONDS = 1.0
_SUFFIXES = {".yaml", ".yml", ".json"}


def dev(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8080,
    db: Annotated[Path | None, typer.Option(help="A SQLite file instead of ORCHESTRATOR_DATABASE_URL.")] = None,
    workflows: Annotated[
        Path | None,
        typer.Option("--workflows", help="Register the workflow files of this directory, now and on change."),
    ] = None,
) -> None:
    """Run API, scheduler and worker, here. Prints the URL on stdout when it is ready."""
    from orchestrator.api.app import create_app
    from orchestrator.api.auth import check_bind
    from orchestrator.api.server import ApiServer, listen
    from orchestrator.cli.run_database import sqlite_url
    from orchestrator.cli.stopping import address, stop_signal
    from orchestrator.settings import Settings
    from orchestrator.telemetry.logs import configure_from
    from workers.embedded import Embedded

    if workflows is not None and not workflows.is_dir():
        raise UsageError(
            f"--workflows {workflows} is not a directory.", mend="Name the directory of your workflow files."
        )
    home = (workflows or Path.cwd()).resolve()
    settings = Settings.load(host=host, port=port, database_url=sqlite_url(db) if db is not None else None)
    stop = stop_signal()
    configure_from(settings.replace(log_format="console" if sys.stderr.isatty() else settings.log_format))
    sys.path.insert(0, str(home))
    with ExitStack() as stack:
        listener = listen(host, port)
        stack.callback(listener.close)
        house = stack.enter_context(Embedded(settings, search_path=[home]))
        check_bind(house.engine, settings, host, dev=True)
        if workflows is not None:
            watch = Watch(house.engine, home)
            watch.look()
            threading.Thread(target=watch.follow, args=(stop,), name="orchestrator-watch", daemon=True).start()
        server = ApiServer(create_app(house.engine, house.settings, meters=house.meters, dev=True), listener)
        server.start()
        stack.callback(server.stop)
        print(address(host, server.port), flush=True)
        say(f"ready; the data is in {settings.redacted()['database_url']}. Ctrl-C stops, nothing is lost.")
        stop.wait()
    say("stopped")


class Watch:
    """Registers the workflow files of one directory, and again when one changes. An invalid file changes nothing."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        self._seen: dict[Path, tuple[int, int]] = {}

    def follow(self, stop: threading.Event) -> None:
        """Looks each second until ``stop``."""
        while not stop.wait(WATCH_SECONDS):
            self.look()

    def look(self) -> list[str]:
        """Registers what is new or changed; answers the names of what it registered."""
        done = []
        for path in sorted(self._directory.iterdir()):
            if path.suffix not in _SUFFIXES or not self._changed(path):
                continue
            try:
                done.append(self._register(path))
            except OrchestratorError as error:
                explain(error)
                say(f"{path.name} is not registered; what was registered before stays.")
        return done

    def _changed(self, path: Path) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        stamp = (found.st_mtime_ns, found.st_size)
        changed = self._seen.get(path) != stamp
        self._seen[path] = stamp
        return changed

    def _register(self, path: Path) -> str:
        from orchestrator.engine.submit import register

        workflow = read_workflow(path)
        version = register(self._engine, workflow)
        say(f"{path.name}: registered {workflow.name}@{version[:12]}")
        return str(workflow.name)
