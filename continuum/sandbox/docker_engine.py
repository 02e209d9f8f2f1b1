"""The Docker daemon as Trio code sees it: docker-py's calls in worker threads, each with a deadline.

A call whose caller was cancelled is abandoned, not waited for. Only the creation of a container must not be lost that
way: its thread removes what it made for nobody.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import docker
import docker.errors
import requests
import structlog
import trio

from continuum.sandbox.docker_stream import (
    ContainerStream,
    Endpoint,
    EngineError,
    EngineNotFound,
    EngineRefused,
    attach,
    ping,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

CALL_DEADLINE = 30.0
"""Seconds for one call. A daemon under load needs a second or two for a start; beyond this it hangs."""
REMOVE_DEADLINE = 10.0
"""Seconds to wait for a container to be gone."""
SOCKET_TIMEOUT = 60
"""Seconds of silence after which an abandoned call gives up its thread."""
PARALLEL_CALLS = 8
_GONE_POLL = 0.05


class Printed(NamedTuple):
    """What a container wrote: all of its stdout, the end of its stderr."""

    output: str
    errors: str


class Engine:
    """A Docker daemon. Every method raises `EngineError` when the daemon cannot be reached or does not answer,
    `EngineRefused` when it says no, `EngineNotFound` when what is named does not exist."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._api: docker.APIClient | None = None
        self._connecting = trio.Lock()
        self._calls = trio.CapacityLimiter(PARALLEL_CALLS)
        # Removals have threads of their own: they must get through when every other call hangs.
        self._removals = trio.CapacityLimiter(PARALLEL_CALLS)
        self.unremoved: set[str] = set()
        """Names of containers whose removal failed, to be tried again."""

    async def ping(self) -> None:
        """Raise `EngineError`, saying what to do, unless the daemon answers."""
        await ping(self.endpoint)

    async def call(
        self,
        function: Callable[[Any], T],
        *,
        deadline: float = CALL_DEADLINE,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        """Run `function` with docker-py's `APIClient`, which is not fully typed, in a thread; return what it returns."""
        try:
            with trio.fail_after(deadline):
                # docker-py tells a daemon that is not there as a chain of three exceptions, and leaks a socket.
                await (await self.endpoint.connect()).aclose()
                api = await self._connected()
                return await trio.to_thread.run_sync(
                    _translated, function, api, abandon_on_cancel=True, limiter=limiter or self._calls
                )
        except trio.TooSlowError:
            raise EngineError(
                f"the Docker daemon at {self.endpoint.url} did not answer within {deadline:g} s"
            ) from None

    async def _connected(self) -> docker.APIClient:
        async with self._connecting:
            if self._api is None:
                self._api = await trio.to_thread.run_sync(self._connect, abandon_on_cancel=True)
        return self._api

    def _connect(self) -> docker.APIClient:
        def connect(_: None) -> docker.APIClient:
            return docker.APIClient(self.endpoint.url, version="auto", timeout=SOCKET_TIMEOUT)

        return _translated(connect, None)

    async def create(self, name: str, specification: Mapping[str, Any]) -> None:
        """Create a container from the API's own description of one (`POST /containers/create`).

        When this raises, cancellation included, the container may exist for a moment longer: remove it by name.
        """
        abandoned = threading.Event()

        def create(api: Any) -> None:
            api.create_container_from_config(dict(specification), name)
            # Set by whoever gave up, before it removes by name: one of the two removals finds the container.
            if abandoned.is_set():
                api.remove_container(name, v=True, force=True)

        try:
            await self.call(create)
        except BaseException:
            abandoned.set()
            raise

    async def start(self, name: str) -> None:
        """Start a created container."""
        await self.call(lambda api: api.start(name))

    async def attach(self, name: str, *, stdin: bool = False) -> ContainerStream:
        """The standard streams of a container that is created and not yet started."""
        api = await self._connected()
        return await attach(self.endpoint, api.api_version, name, stdin=stdin)

    async def inspect(self, name: str, *, deadline: float = CALL_DEADLINE) -> dict[str, Any]:
        """All that the daemon knows of a container."""
        found: dict[str, Any] = await self.call(lambda api: api.inspect_container(name), deadline=deadline)
        return found

    async def events(self, name: str, kinds: Sequence[str], *, since: float) -> set[str]:
        """Which kinds of events (`oom`, `die`) of a container, which may be gone, the daemon remembers.

        since: seconds since the epoch, by the daemon's clock.
        """
        filters = json.dumps({"container": [name], "event": list(kinds)})

        def find(api: Any) -> set[str]:
            moments = {"since": int(since), "until": f"{time.time():.6f}"}
            answer = api.get(api._url("/events"), params={"filters": filters, **moments}, timeout=CALL_DEADLINE)
            api._raise_for_status(answer)
            found = map(json.loads, answer.text.splitlines())
            # The daemon takes a name for the beginning of one: of the containers that help this one, too.
            return {event["Action"] for event in found if event["Actor"]["Attributes"].get("name") == name}

        return await self.call(find)

    async def remove(self, name: str) -> bool:
        """Kill a container, remove it and wait until it is gone: True when it is, however that came.

        Never raises for a daemon that fails, takes REMOVE_DEADLINE at most and cannot be cancelled. What could not
        be removed stays in `unremoved`.
        """
        with trio.move_on_after(REMOVE_DEADLINE, shield=True):
            try:
                await self._kill_and_remove(name)
            except EngineNotFound:
                self.unremoved.discard(name)
                return True
            except EngineError as error:
                log.warning("a container could not be removed", container=name, error=str(error))
        self.unremoved.add(name)
        return False

    async def _kill_and_remove(self, name: str) -> None:
        """Return never: raise `EngineNotFound` once the container is gone."""
        while True:
            try:
                await self.call(lambda api: api.remove_container(name, v=True, force=True), limiter=self._removals)
            except EngineNotFound:
                raise
            except EngineError as error:
                # It is removing itself (it ended at the same moment), or it is between two states.
                log.debug("a container is not removed yet", container=name, error=str(error))
                await self.call(lambda api: api.inspect_container(name), limiter=self._removals)
            await trio.sleep(_GONE_POLL)

    async def run(
        self, name: str, specification: Mapping[str, Any], *, deadline: float, after: trio.Event | None = None
    ) -> Printed:
        """Run a container that ends and removes itself within `deadline` seconds of its start; return what it printed.

        after: what the start has to wait for, while the container is made.
        """
        try:
            await self.create(name, specification)
            async with await self.attach(name) as stream:
                if after is not None:
                    await after.wait()
                with trio.fail_after(deadline):
                    await self.start(name)
                    output = b"".join([piece async for piece in stream])
                    return Printed(output.decode(errors="replace"), stream.diagnosis)
        except trio.TooSlowError:
            await self.remove(name)
            raise EngineError(f"the container {name} did not end within {deadline:g} s") from None
        except BaseException:
            await self.remove(name)
            raise

    def close(self) -> None:
        """Give back the connections to the daemon."""
        if self._api is not None:
            self._api.close()
            self._api = None


def _translated(function: Callable[[Any], T], argument: Any) -> T:
    """Call a function of docker-py, and raise what goes wrong as an `EngineError`."""
    try:
        return function(argument)
    except docker.errors.NotFound as error:
        raise EngineNotFound(f"Docker: {error.explanation or error}") from error
    except docker.errors.APIError as error:
        raise EngineRefused(f"Docker: {error.explanation or error}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise EngineError(f"the Docker daemon failed to answer: {error}") from error
