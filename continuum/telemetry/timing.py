"""Measures calls from outside, so that what is measured need not know of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

Record = Callable[[str, float, str], None]
"""Called with the verb, the seconds it took, and the name of the exception that ended it, or ''."""


class Timed:
    """Stands in for `target`: its coroutine methods named in `verbs` are timed, all else passes through."""

    def __init__(self, target: object, verbs: frozenset[str], record: Record) -> None:
        self._target = target
        self._verbs = verbs
        self._record = record

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if name not in self._verbs:
            return attribute
        timed = _timed(name, attribute, self._record)
        setattr(self, name, timed)  # found directly from now on
        return timed


def _timed(verb: str, method: Callable[..., Awaitable[Any]], record: Record) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        failure = ""
        try:
            return await method(*args, **kwargs)
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            record(verb, time.perf_counter() - started, failure)

    return call
