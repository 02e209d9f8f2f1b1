"""Submitting tasks and reading their outcomes: `Client` on Trio, `BlockingClient` for everybody else.

trio_client.py    `Client`: run, submit, wait, read, cancel
blocking.py       `BlockingClient`: the same in a thread
tasks.py          from a script and its payload to a task
sources.py        scripts: text or file, and the epilogue that prints their `result`
results.py        from a task that has ended to its result
errors.py         what can go wrong with a task
waiting.py        how often to ask whether tasks have ended
logs.py           following what a task writes
"""

from continuum.client.blocking import BlockingClient, BlockingResults, connect_blocking
from continuum.client.errors import (
    BadResult,
    NotShippable,
    TaskCancelled,
    TaskError,
    TaskFailed,
    TaskNotFound,
    TaskOutOfMemory,
    TaskRefused,
    TaskTimedOut,
    WaitTimeout,
)
from continuum.client.functions import BlockingFunction, Function, RemoteFunction, task
from continuum.client.mapping import Results
from continuum.client.tasks import new_task
from continuum.client.trio_client import Client, connect
from continuum.db.errors import QueueFull
from continuum.retry import RetryPolicy

__all__ = [
    "BadResult",
    "BlockingClient",
    "BlockingFunction",
    "BlockingResults",
    "Client",
    "Function",
    "NotShippable",
    "QueueFull",
    "RemoteFunction",
    "Results",
    "RetryPolicy",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "TaskNotFound",
    "TaskOutOfMemory",
    "TaskRefused",
    "TaskTimedOut",
    "WaitTimeout",
    "connect",
    "connect_blocking",
    "new_task",
    "task",
]
