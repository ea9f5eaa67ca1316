"""``python -m orchestrator.cli``: the command line without its installed script, as child processes start it."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
