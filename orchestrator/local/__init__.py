"""Real servers as private child processes: for ``orchestrator up-local`` and for the tests."""
