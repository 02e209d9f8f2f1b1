"""Continuum: run Python code that you do not trust, from a SQL table, without losing a task.

Producers use `Client` (Trio) or `BlockingClient`; see `continuum.client`. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continuum.client import (
        BadResult,
        BlockingClient,
        BlockingFunction,
        BlockingResults,
        Client,
        Function,
        NotShippable,
        QueueFull,
        RemoteFunction,
        Results,
        TaskCancelled,
        TaskError,
        TaskFailed,
        TaskNotFound,
        TaskOutOfMemory,
        TaskRefused,
        TaskTimedOut,
        WaitTimeout,
        connect,
        connect_blocking,
        new_task,
        task,
    )
    from continuum.model import BatchProgress, Cancellation, NewTask, Status, TaskRecord
    from continuum.retry import RetryPolicy
    from continuum.standalone import local, local_blocking

__all__ = [
    "BadResult",
    "BatchProgress",
    "BlockingClient",
    "BlockingFunction",
    "BlockingResults",
    "Cancellation",
    "Client",
    "Function",
    "NewTask",
    "NotShippable",
    "QueueFull",
    "RemoteFunction",
    "Results",
    "RetryPolicy",
    "Status",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "TaskNotFound",
    "TaskOutOfMemory",
    "TaskRecord",
    "TaskRefused",
    "TaskTimedOut",
    "WaitTimeout",
    "connect",
    "connect_blocking",
    "local",
    "local_blocking",
    "new_task",
    "task",
]

_MODULES = {
    **dict.fromkeys(("BatchProgress", "Cancellation", "NewTask", "Status", "TaskRecord"), "continuum.model"),
    "RetryPolicy": "continuum.retry",
    **dict.fromkeys(("local", "local_blocking"), "continuum.standalone"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'continuum' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "continuum.client")), name)
