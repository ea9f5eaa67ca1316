"""From ``module:callable`` to the callable, inside the allowed packages and nowhere else."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.domain.outcome import FailureClass
from workers.agents.failing import failed

Target = Callable[..., Any]


class Targets:
    """Resolves targets inside ``packages``, and inside modules found in the directories ``search_path``.

    ``packages`` are dotted names (``acme.agents`` allows itself and all below it). ``search_path`` is for ``run`` and
    ``dev``: the caller has put those directories on ``sys.path``. Nothing outside is imported, ever.
    """

    def __init__(self, packages: Sequence[str], search_path: Sequence[Path] = ()) -> None:
        self._packages = tuple(packages)
        self._search_path = [str(directory) for directory in search_path]
        self._known: dict[str, Target] = {}

    def known(self, target: str) -> Target | None:
        """The callable, if it was resolved before."""
        return self._known.get(target)

    def resolve(self, target: str) -> Target:
        """Import and remember the callable. Raises ``AgentFailed``, or whatever the module raises when imported."""
        name, _, attribute = target.partition(":")
        self._refuse_outside(name, target)
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the agent's module is there; something it imports is not
            raise failed(
                FailureClass.PERMANENT,
                f"Agent target {target!r}: there is no module {error.name!r} on this worker. "
                "Install the package that holds it, or correct the target.",
            ) from error
        found = getattr(module, attribute, None)
        if not callable(found):
            what = "has no" if found is None else f"holds a {type(found).__name__}, not a callable, as"
            raise failed(FailureClass.PERMANENT, f"Agent target {target!r}: module {name!r} {what} {attribute!r}.")
        self._refuse_borrowed(found, target)
        resolved: Target = found
        self._known[target] = resolved
        return resolved

    def _allows(self, module: str) -> bool:
        inside = any(module == package or module.startswith(f"{package}.") for package in self._packages)
        return inside or self._in_search_path(module.partition(".")[0])

    def _in_search_path(self, top: str) -> bool:
        """Whether importing ``top`` would take it from the search path (a directory's ``json.py`` is shadowed)."""
        there = PathFinder.find_spec(top, self._search_path) if self._search_path else None
        if there is None:
            return False
        try:
            return _places(there) <= _places(find_spec(top))
        except ValueError:  # ``__main__`` and other modules that were not imported
            return False

    def _refuse_outside(self, module: str, target: str) -> None:
        if not self._allows(module):
            raise failed(
                FailureClass.REFUSED_BY_POLICY,
                f"Agent target {target!r} is outside ORCHESTRATOR_AGENT_PACKAGES, so it was not imported. "
                "Name its package there and restart the worker.",
            )

    def _refuse_borrowed(self, found: Target, target: str) -> None:
        """An allowed module's ``from os import system`` does not make ``system`` an agent."""
        if not (inspect.isroutine(found) or inspect.isclass(found)):
            return  # an object made there; what its class is, is the author's choice
        home = getattr(found, "__module__", None) or "builtins"
        if not self._allows(home):
            raise failed(
                FailureClass.REFUSED_BY_POLICY,
                f"Agent target {target!r} is defined in {home!r}, outside ORCHESTRATOR_AGENT_PACKAGES. "
                "Write a function of your own around it.",
            )


def _places(spec: ModuleSpec | None) -> frozenset[str]:
    if spec is None:
        return frozenset()
    places = spec.submodule_search_locations or [spec.origin or ""]
    return frozenset(os.path.realpath(place) for place in places)
