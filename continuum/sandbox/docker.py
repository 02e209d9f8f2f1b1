"""The Docker backend: each sandbox is a container whose only process is the runner.

A sandbox's life: create, attach to its standard streams, start; then the runner boots while a helper container sets the
network policy; then scripts, one after the other; then removal. The runner ends when its stdin does, which the daemon
sees to when the worker dies, and a container that ends removes itself.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog
import trio

from continuum.config import Settings
from continuum.model import Outcome, RunRequest
from continuum.sandbox.channel import BOOTSTRAP, RunnerChannel, RunnerConfig
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import SANDBOX_UID, WORK_DIRECTORY, SandboxImage, ensure_image
from continuum.sandbox.docker_network import (
    SandboxNetwork,
    enforceable,
    ensure_network,
    find_host_addresses,
    restrict,
)
from continuum.sandbox.docker_owner import ROLE_LABEL, WORKER_LABEL, Owner
from continuum.sandbox.docker_specification import TEMPORARY_DIRECTORIES, sandbox_specification
from continuum.sandbox.docker_stream import ContainerStream, Endpoint, EngineError, EngineNotFound
from continuum.sandbox.network import Allowlist, EgressPolicy, PolicyError
from continuum.sandbox.network_names import resolve
from continuum.sandbox.protocol import BackendUnavailable, OutputSink, SandboxLost

log = structlog.get_logger(__name__)

CHECK_DEADLINE = 3.0
"""Seconds for the daemon to say that it is there."""
AUTOPSY_DEADLINE = 2.0
"""Seconds for the daemon to say why a container ended."""
RUNNER = RunnerConfig(
    uid=SANDBOX_UID, gid=SANDBOX_UID, home=WORK_DIRECTORY, writable=(*TEMPORARY_DIRECTORIES, "/dev/mqueue")
)
_NO_NETWORK = "sandboxes run without the network that EGRESS wants for them"


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What `prepare` found. network: None where sandboxes get none, which is wanted or explained by `no_network`."""

    image: SandboxImage
    runtime: str
    egress: str
    network: SandboxNetwork | None
    no_network: str = ""

    @property
    def description(self) -> str:
        if self.network is not None:
            return f"docker ({self.runtime}), egress {self.egress}"
        return f"docker ({self.runtime}), no network" + (f": {self.no_network}" if self.no_network else "")


class DockerBackend:
    """Makes sandboxes on the Docker daemon that DOCKER_HOST names."""

    name = "docker"

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self._settings = settings
        self._owner = Owner.current(settings, worker_id)
        self._connected: Engine | None = None
        self._prepared: _Prepared | None = None
        self._warned: set[str] = set()

    @property
    def description(self) -> str:
        return self.name if self._prepared is None else self._prepared.description

    @property
    def _engine(self) -> Engine:
        """Raises `BackendUnavailable` for a DOCKER_HOST that cannot be used."""
        if self._connected is None:
            self._connected = Engine(Endpoint.from_environment(os.environ))
        return self._connected

    async def check(self) -> None:
        try:
            with trio.fail_after(CHECK_DEADLINE):
                await self._engine.ping()
        except trio.TooSlowError:
            raise EngineError(f"the Docker daemon did not answer within {CHECK_DEADLINE:g} s") from None

    async def prepare(self) -> None:
        await self.check()
        engine, settings = self._engine, self._settings
        info: dict[str, Any] = await engine.call(lambda api: api.info())
        if info.get("OSType") != "linux":
            raise BackendUnavailable(f"the Docker daemon runs {info.get('OSType')} containers; sandboxes need Linux")
        for limit in _missing_limits(info):
            self._warn_once("Docker cannot limit what sandboxes use", resource=limit)
        network, no_network = await self._find_network(info)
        image = await ensure_image(
            engine, self._owner, settings.container_image, network=network.id if network else None
        )
        if network is not None:
            try:
                network = await self._with_policy(network, image)
            except PolicyError as error:
                network, no_network = None, str(error)
        runtime = settings.container_runtime or info.get("DefaultRuntime") or "runc"
        self._prepared = _Prepared(image, runtime, settings.egress, network, no_network)
        if no_network:
            self._warn_no_network(no_network)

    async def _find_network(self, info: dict[str, Any]) -> tuple[SandboxNetwork | None, str]:
        """The sandboxes' network, or None and the reason why there is none, empty when none is wanted."""
        if self._settings.egress == "none":
            return None, ""
        if not enforceable(info, self._settings.container_runtime):
            return None, "iptables rules do not bind containers of this runtime"
        try:
            return await ensure_network(self._engine), ""
        except PolicyError as error:
            return None, str(error)

    async def _with_policy(self, network: SandboxNetwork, image: SandboxImage) -> SandboxNetwork:
        """The network with what its policy needs of the host. Raises `PolicyError`."""
        if not image.has_iptables:
            raise PolicyError(f"{self._settings.container_image} lacks iptables, which could not be installed")
        host = await find_host_addresses(self._engine, self._owner, image.tag)
        return replace(network, policy=replace(network.policy, host=host, resolvers=self._settings.egress_dns))

    async def start(self) -> DockerSandbox:
        prepared = self._prepared
        if prepared is None:
            raise BackendUnavailable("the Docker backend has not been prepared")
        if prepared.network is not None:
            network = replace(prepared.network, policy=await self._current(prepared.network.policy))
            try:
                return await self._start(prepared.image, network)
            except PolicyError as error:
                self._prepared = replace(prepared, network=None, no_network=str(error))
                self._warn_no_network(str(error))
        return await self._start(prepared.image, None)

    async def _current(self, policy: EgressPolicy) -> EgressPolicy:
        """A policy with the addresses that the names in EGRESS_ALLOW have now. Raises `BackendUnavailable`: to start
        sandboxes without a network, because of a name server that is down, would fail tasks that can wait."""
        if self._settings.egress != "allowlist":
            return policy
        try:
            return replace(policy, allowlist=await resolve(self._settings.egress_allow))
        except PolicyError as error:
            raise BackendUnavailable(f"no sandbox is started for what EGRESS_ALLOW names: {error}") from error

    async def _start(self, image: SandboxImage, network: SandboxNetwork | None) -> DockerSandbox:
        """Raises `PolicyError` when the network's policy cannot be set in the sandbox."""
        engine, owner = self._engine, self._owner
        name = f"continuum-{secrets.token_hex(6)}"
        policy = network.policy if network else EgressPolicy()
        specification = sandbox_specification(
            self._settings,
            image,
            BOOTSTRAP,
            owner.labels("sandbox"),
            network.id if network else "none",
            hosts=policy.extra_hosts,
            resolvers=policy.resolvers,
        )
        stream: ContainerStream | None = None
        try:
            await engine.create(name, specification)
            stream = await engine.attach(name, stdin=True)
            await engine.start(name)
            channel = RunnerChannel(stream, name=name, memory_mb=self._settings.container_memory_mb)
            with _first_failure():
                async with trio.open_nursery() as nursery:
                    if network is not None:
                        nursery.start_soon(restrict, engine, owner, image.tag, name, policy)
                    await self._boot(channel, stream)
            return DockerSandbox(engine, name, stream, channel, policy.allowlist)
        except BaseException:
            await engine.remove(name)
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise

    async def _boot(self, channel: RunnerChannel, stream: ContainerStream) -> None:
        try:
            await channel.boot(RUNNER)
        except SandboxLost as lost:
            raise BackendUnavailable(f"no runner answers in a new container: {lost}{stream.last_words}") from lost

    async def sweep(self, live_workers: Set[str]) -> int:
        engine, now = self._engine, time.time()
        listed: list[dict[str, Any]] = await engine.call(
            lambda api: api.containers(all=True, filters={"label": WORKER_LABEL})
        )
        left = [
            container
            for container in listed
            if Owner.from_labels(container["Labels"]).is_dead(self._owner, live_workers, now - container["Created"])
        ]
        removed = 0

        async def remove(container: dict[str, Any]) -> None:
            nonlocal removed
            if await engine.remove(container["Id"]) and container["Labels"].get(ROLE_LABEL) == "sandbox":
                removed += 1

        async with trio.open_nursery() as nursery:
            for container in left:
                nursery.start_soon(remove, container)
            for name in list(engine.unremoved):
                nursery.start_soon(engine.remove, name)
        return removed

    async def aclose(self) -> None:
        if self._connected is not None:
            self._connected.close()

    def _warn_no_network(self, because: str) -> None:
        self._warn_once(_NO_NETWORK, egress=self._settings.egress, because=because)

    def _warn_once(self, event: str, **details: str) -> None:
        if (warning := f"{event} {details}") not in self._warned:
            self._warned.add(warning)
            log.warning(event, **details)


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raise one of the errors that ended a nursery together: a policy that cannot be set before the rest, which it
    tends to cause. A cancellation passes as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        for kind in (PolicyError, BackendUnavailable):
            if found := group.subgroup(kind):
                raise found.exceptions[0] from None
        raise


def _missing_limits(info: dict[str, Any]) -> list[str]:
    """What the daemon says that it cannot limit."""
    limits = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPU time"}
    return [limit for flag, limit in limits.items() if info.get(flag) is False]


class DockerSandbox:
    """A container in which a runner waits for scripts."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        stream: ContainerStream,
        channel: RunnerChannel,
        allowlist: Allowlist | None = None,
    ) -> None:
        self.name = name
        self._allowlist = allowlist
        self._engine = engine
        self._stream = stream
        self._channel = channel

    @property
    def reusable(self) -> bool:
        """Whether the addresses that it was given for the names in EGRESS_ALLOW may still be used."""
        return self._allowlist is None or self._allowlist.is_current(trio.current_time())

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        try:
            return await self._channel.run(request, sink)
        except SandboxLost as lost:
            raise SandboxLost(f"{lost}: {await self._autopsy()}", started=lost.started) from lost

    async def _autopsy(self) -> str:
        """Why the container ended, as far as the daemon still knows."""
        try:
            state = (await self._engine.inspect(self.name, deadline=AUTOPSY_DEADLINE))["State"]
        except EngineNotFound:
            return f"the container {self.name} was removed"
        except EngineError as error:
            return str(error)
        if state.get("OOMKilled"):
            seen = "ran out of memory"
        elif state.get("Running"):
            seen = "still runs"
        else:
            seen = f"ended with exit code {state.get('ExitCode')}"
        return f"the container {self.name} {seen}{self._stream.last_words}"

    async def aclose(self) -> None:
        await self._engine.remove(self.name)
        await trio.aclose_forcefully(self._stream)
