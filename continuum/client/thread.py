"""A client in a thread of its own, called from others."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeVar

import trio

from continuum.client.trio_client import GIVE_UP_DEADLINE, Client

T = TypeVar("T")

NOT_OPEN = "use `with continuum.connect_blocking() as client:`, or `open` it"
CLOSED = "this client was closed"
IN_TRIO = "this client would block what else runs in Trio's thread; use `continuum.connect()`"
INTERRUPT_DEADLINE = GIVE_UP_DEADLINE + 5.0
"""Seconds that Ctrl-C waits for what it interrupted."""


class ClientThread:
    """Opens a client where Trio runs, in a thread; hands calls to it, and brings back what they return or raise."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Client]]) -> None:
        self._opening = opening
        self._life: _Life | None = None

    def open(self) -> None:
        """Raises what opening the client raises."""
        if self._life is not None:
            raise RuntimeError("this client is open already")
        life = _Life(self._opening)
        life.start()
        self._life = life

    def close(self) -> None:
        """End the thread, and with it the calls that other threads wait for. Raises what ended it before. Safe to repeat."""
        life, self._life = self._life, None
        if life is not None:
            life.end()

    @property
    def client(self) -> Client:
        """For what needs no Trio."""
        return self._opened.client

    def call(self, action: Callable[[Client], Awaitable[T]]) -> T:
        """Do something with the client where Trio runs, and wait for it. Ctrl-C cancels it there, and is raised."""
        return self._opened.call(action)

    @property
    def _opened(self) -> _Life:
        if self._life is None:
            raise RuntimeError(NOT_OPEN)
        return self._life


class _Life:
    """One thread, from its start to its end. What is not said to be another thread's belongs to it."""

    client: Client
    _token: trio.lowlevel.TrioToken

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Client]]) -> None:
        self._opening = opening
        self._scope = trio.CancelScope()
        self._closing = trio.Event()
        self._calls: set[trio.CancelScope] = set()
        self._call_ended = trio.Event()
        self._running, self._opened = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="continuum-client", daemon=True)

    # -- in other threads --------------------------------------------------------------------------------------------

    def start(self) -> None:
        try:
            self._thread.start()
            self._opened.wait()
        except KeyboardInterrupt:
            self._running.wait(INTERRUPT_DEADLINE)
            self._soon(self._scope.cancel)
            self._thread.join(INTERRUPT_DEADLINE)
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def end(self) -> None:
        self._soon(self._closing.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def call(self, action: Callable[[Client], Awaitable[T]]) -> T:
        if trio.lowlevel.in_trio_run():
            raise RuntimeError(IN_TRIO)
        scope, over = trio.CancelScope(), threading.Event()

        async def act() -> T:
            try:
                return await self._act(action, scope)
            finally:
                over.set()

        try:
            return trio.from_thread.run(act, trio_token=self._token)
        except trio.RunFinishedError:
            raise RuntimeError(CLOSED) from self._failure
        except KeyboardInterrupt:
            self._soon(scope.cancel)
            over.wait(INTERRUPT_DEADLINE)
            raise

    def _soon(self, function: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    # -- in this one -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:
            self._failure = error
            self._opened.set()

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._running.set()
        with self._scope:
            async with self._opening() as self.client:
                self._opened.set()
                try:
                    await self._closing.wait()
                finally:
                    await self._end_calls()

    async def _end_calls(self) -> None:
        self._closing.set()
        for scope in self._calls:
            scope.cancel()
        with trio.CancelScope(shield=True):  # each ends soon: it is cancelled
            while self._calls:
                self._call_ended = trio.Event()
                await self._call_ended.wait()

    async def _act(self, action: Callable[[Client], Awaitable[T]], scope: trio.CancelScope) -> T:
        if self._closing.is_set():
            raise RuntimeError(CLOSED)
        self._calls.add(scope)
        try:
            with scope:
                return await action(self.client)
        finally:
            self._calls.discard(scope)
            self._call_ended.set()
        raise RuntimeError(CLOSED)
