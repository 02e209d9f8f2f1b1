"""The queues that one would pick instead, and the floor below them all: a module for each, run as a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A queue that runs jobs which do nothing, and what is needed to measure it.

    module: a worker, as `python -m`. Its database is in DATABASE_URL; it prints a line once it is up, and ends at SIGTERM.
    install: set up its schema in an empty database; None where that is Continuum's.
    insert: make so many jobs, as its own producers do.
    unfinished: a statement that gives a row as long as there is a job whose end is not written.
    successful: a statement that counts the jobs that ended well. environment: what else a worker is told.
    """

    name: str
    module: str
    install: Callable[[Connection], None] | None
    insert: Callable[[Connection, int], None]
    unfinished: str
    successful: str
    environment: Mapping[str, str] = field(default_factory=dict)
