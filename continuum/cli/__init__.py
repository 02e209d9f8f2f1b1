"""The command line. Exit codes are in `continuum.cli.errors`, each command in the module named for what it is about."""

from continuum.cli.app import app, main

__all__ = ["app", "main"]
