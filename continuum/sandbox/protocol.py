"""What the rest of Continuum knows of sandboxes.

Two backends implement it: `docker` and `bubblewrap`. Both run the same `runner.py` inside.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from continuum.model import Outcome, RunRequest, Stream
from continuum.requirements import Requirements

OutputSink = Callable[[Stream, str], None]
"""Called with each piece of output while a script runs: text, already decoded and within the limit. Must not block."""


class SandboxError(Exception):
    """Something went wrong with sandboxes."""


class BackendUnavailable(SandboxError):
    """No sandbox can be started right now (daemon down, image missing); the message says what to do."""


class SandboxLost(SandboxError):
    """This sandbox died or broke the protocol: throw it away. The message says what was seen.

    started: whether the script may have begun. False means that it certainly has not, so that the attempt can go
    on in another sandbox.
    amid_request: whether it ended while it was being told what to run, which may be the reason.
    used: whether it had run a script before; the pool says so. The end of a new one tells more of the backend.
    """

    def __init__(self, message: str, *, started: bool = True, amid_request: bool = False) -> None:
        super().__init__(message)
        self.started = started
        self.amid_request = amid_request
        self.used = False

    def retold(self, message: str) -> SandboxLost:
        """The same with another message."""
        return SandboxLost(message, started=self.started, amid_request=self.amid_request)


class RequirementsFailed(SandboxError):
    """A list of requirements could not be installed, for reasons that may pass (the index is down, time ran out) or that
    lie with this host; the message says which."""


class LayerGone(SandboxError):
    """A layer was removed before a sandbox with it could be started: ask for it again."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a list of requirements became on this host: a directory that sandboxes started with it can read.

    name: how an operator finds it. key: the same for every build of the same list for the same interpreter.
    """

    name: str
    key: str


class Sandbox(Protocol):
    """One started sandbox: runs one script at a time and forgets each before the next."""

    @property
    def name(self) -> str:
        """How an operator finds it: a container's name, a process id."""
        ...

    @property
    def reusable(self) -> bool:
        """False once it must run nothing more, however well it is: what it was started with no longer holds."""
        ...

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        """Run a script to its end and return how it ended. The runner inside enforces the timeout and the limits
        and says `ready` once nothing of the script is left; the next `run` waits for that first.

        Raises `SandboxLost` when the sandbox died or misbehaved. After that, or after being cancelled, the sandbox
        must be closed and not used again."""
        ...

    async def aclose(self) -> None:
        """Kill everything inside and remove it. Safe to repeat; bounded in time even when shielded."""
        ...


class Backend(Protocol):
    """A way of making sandboxes."""

    @property
    def name(self) -> str:
        """`docker` or `bubblewrap`."""
        ...

    @property
    def description(self) -> str:
        """The isolation in force, for people: `docker (runsc: gVisor, a kernel of its own), no network`."""
        ...

    async def prepare(self) -> None:
        """What must be done once per host before the first cold start: find or build the image, make the network.
        Raises `BackendUnavailable`."""
        ...

    def layer(self, requirements: Requirements) -> AbstractAsyncContextManager[Layer]:
        """The layer of a list, found or built; it stays as long as the block lasts.

        Raises `BadRequirements` when no build can ever succeed, quoting the resolver, `RequirementsFailed` when this one
        did not, and `BackendUnavailable` when none could be begun."""
        ...

    async def start(self, layer: Layer | None = None) -> Sandbox:
        """A cold start: a sandbox whose runner is ready and whose network policy is verified. Its scripts can import
        what is in the layer. Raises `BackendUnavailable` and `LayerGone`."""
        ...

    async def check(self) -> None:
        """Raise `BackendUnavailable` when no sandbox could be started now; cheap."""
        ...

    async def sweep(self, live_workers: Set[str]) -> int:
        """Remove what dead workers left on this host and return how many sandboxes that was. A worker of this
        process namespace is dead when its process is; any other is dead when it is not in `live_workers`."""
        ...

    async def aclose(self) -> None:
        """Give back what `prepare` took."""
        ...
