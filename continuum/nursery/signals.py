"""Small pieces the services of one worker share to tell each other that something is to be done."""

from __future__ import annotations

import trio


class Signal:
    """A flag that one task raises and another waits for. Raised while nobody waits, it is not lost: the next
    wait returns at once. Raised many times, it wakes once."""

    def __init__(self) -> None:
        self._raised = trio.Event()

    def notify(self) -> None:
        self._raised.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until it is raised, or `seconds` long, and lower it. Returns whether it had been raised."""
        with trio.move_on_after(seconds):
            await self._raised.wait()
        raised = self._raised.is_set()
        self._raised = trio.Event()
        return raised


class Shutdown:
    """How the worker is told to stop: once to drain, a second time to stop without grace."""

    def __init__(self) -> None:
        self.requested = trio.Event()
        self.urgent = trio.Event()

    def request(self) -> None:
        """Ask to stop; asked again, what still runs loses its grace."""
        if self.requested.is_set():
            self.urgent.set()
        self.requested.set()
