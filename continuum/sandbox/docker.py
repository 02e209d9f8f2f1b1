"""The Docker backend: each sandbox is a container whose only process is the runner.

A sandbox's life: create, attach to its standard streams, start, while a helper container is made; then the runner boots
while the helper sets the network policy; then scripts, one after the other; then removal. The runner ends when its stdin
does, which the daemon sees to when the worker dies, and a container that ends removes itself.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Set
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import structlog
import trio

from continuum.config import Settings
from continuum.egress import Address
from continuum.model import Ending, Outcome, RunRequest, Stream
from continuum.requirements import Requirements
from continuum.sandbox.channel import BOOTSTRAP, RunnerChannel, RunnerConfig
from continuum.sandbox.docker_engine import CALL_DEADLINE, Engine
from continuum.sandbox.docker_image import SANDBOX_UIDS, SandboxImage, ensure_image
from continuum.sandbox.docker_isolation import Isolation, SocketFilter, isolation_of, probe_socket
from continuum.sandbox.docker_layers import DockerLayers
from continuum.sandbox.docker_network import SandboxNetwork, close_host, enforceable, ensure_network, restrict
from continuum.sandbox.docker_owner import ROLE_LABEL, WORKER_LABEL, Owner
from continuum.sandbox.docker_specification import runner_config, sandbox_limits, sandbox_specification
from continuum.sandbox.docker_stream import ContainerStream, Endpoint, EngineError, EngineNotFound
from continuum.sandbox.network import Allowlist, EgressPolicy, PolicyError
from continuum.sandbox.network_names import resolve
from continuum.sandbox.protocol import BackendUnavailable, Layer, OutputSink, SandboxLost
from continuum.sandbox.requirements_build import PLACE

log = structlog.get_logger(__name__)

CHECK_DEADLINE = 3.0
"""Seconds for the daemon to say that it is there."""
AUTOPSY_DEADLINE = 2.0
"""Seconds for the daemon to say why a container ended."""
LATE_EVENTS = 0.5
"""Seconds by which two events of one end may come apart."""
_NO_NETWORK = "sandboxes run without the network that EGRESS wants for them"


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What `prepare` found. network: None where sandboxes get none, which is wanted or explained by `no_network`."""

    image: SandboxImage
    isolation: Isolation
    egress: str
    network: SandboxNetwork | None
    no_network: str = ""

    @property
    def description(self) -> str:
        if self.network is not None:
            return f"docker ({self.isolation.summary}), egress {self.egress}, rules verified at each start"
        return f"docker ({self.isolation.summary}), no network" + (f": {self.no_network}" if self.no_network else "")


class DockerBackend:
    """Makes sandboxes on the Docker daemon that DOCKER_HOST names."""

    name = "docker"

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self._settings = settings
        self._owner = Owner.current(settings, worker_id)
        self._connected: Engine | None = None
        self._answered = False
        """Whether the daemon ever did: else there is nothing of this worker's."""
        self._prepared: _Prepared | None = None
        self._restricted = False
        """Whether a sandbox of this worker has ever had its network, with verified rules: then a failure to have it is not how
        this host is but something that passes, and tasks wait for that."""
        self._warned: set[str] = set()
        # In an order of this worker's own, so that it seldom meets another's.
        self._uids = itertools.cycle(secrets.SystemRandom().sample(SANDBOX_UIDS, len(SANDBOX_UIDS)))

    @property
    def description(self) -> str:
        return self.name if self._prepared is None else self._prepared.description

    @property
    def host_addresses(self) -> tuple[Address, ...]:
        """Those of the daemon's machine, which sandboxes do not reach; none while they are not known."""
        network = None if self._prepared is None else self._prepared.network
        return () if network is None else network.policy.host

    @property
    def isolation(self) -> Isolation | None:
        """What holds its sandboxes, known once prepared."""
        return None if self._prepared is None else self._prepared.isolation

    async def probe_socket(self) -> SocketFilter:
        """Whether something filters what this worker may ask of the daemon. Raises `BackendUnavailable`."""
        return await probe_socket(self._engine)

    @property
    def _engine(self) -> Engine:
        """Raises `BackendUnavailable` for a DOCKER_HOST that cannot be used."""
        if self._connected is None:
            self._connected = Engine(Endpoint.from_environment(os.environ))
        return self._connected

    @cached_property
    def _layers(self) -> DockerLayers:
        return DockerLayers(self._settings, self._engine, self._owner)

    async def check(self) -> None:
        try:
            with trio.fail_after(CHECK_DEADLINE):
                await self._engine.ping()
        except trio.TooSlowError:
            raise EngineError(f"the Docker daemon did not answer within {CHECK_DEADLINE:g} s") from None
        self._answered = True

    async def prepare(self) -> None:
        await self.check()
        engine, settings = self._engine, self._settings
        info: dict[str, Any] = await engine.call(lambda api: api.info())
        if info.get("OSType") != "linux":
            raise BackendUnavailable(f"the Docker daemon runs {info.get('OSType')} containers; sandboxes need Linux")
        isolation = isolation_of(info, settings.container_runtime)
        for limit in isolation.unlimited:
            self._warn_once("the host does not limit all that a sandbox uses", because=limit)
        network, no_network = await self._find_network(info)
        image = await ensure_image(
            engine, self._owner, settings.container_image, network=network.id if network else None
        )
        if network is not None:
            try:
                network = await close_host(engine, self._owner, network, image, settings.container_image)
            except PolicyError as error:
                network, no_network = None, self._without_network(error)
        self._prepared = _Prepared(image, isolation, settings.egress, network, no_network)
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
            return None, self._without_network(error)

    @asynccontextmanager
    async def layer(self, requirements: Requirements) -> AsyncIterator[Layer]:
        prepared = self._checked()
        async with self._layers.hold(requirements, prepared.image) as layer:
            yield layer

    def _checked(self) -> _Prepared:
        if self._prepared is None:
            raise BackendUnavailable("the Docker backend has not been prepared")
        return self._prepared

    async def start(self, layer: Layer | None = None) -> DockerSandbox:
        prepared = self._checked()
        if prepared.network is not None:
            network = replace(prepared.network, policy=await self._as_set(prepared.network.policy))
            try:
                sandbox = await self._start(prepared, network, layer)
            except PolicyError as error:
                self._prepared = replace(prepared, network=None, no_network=self._without_network(error))
                self._warn_no_network(str(error))
            else:
                self._restricted = True
                return sandbox
        return await self._start(prepared, None, layer)

    def _without_network(self, error: PolicyError) -> str:
        """Why sandboxes are started without a network. Raises `BackendUnavailable` where they had one before: a daemon that
        is busy for a moment must not fail all tasks that need it from then on."""
        if self._restricted:
            raise BackendUnavailable(f"sandboxes cannot have their network, which they had before: {error}") from error
        return str(error)

    async def _as_set(self, policy: EgressPolicy) -> EgressPolicy:
        """A policy as the settings have it, with the addresses that the names in EGRESS_ALLOW have now. Raises
        `BackendUnavailable`: to start sandboxes without a network, because of a name server that is down, would fail tasks that
        can wait."""
        policy = replace(policy, resolvers=self._settings.egress_dns)
        if self._settings.egress != "allowlist":
            return policy
        try:
            return replace(policy, allowlist=await resolve(self._settings.egress_allow))
        except PolicyError as error:
            raise BackendUnavailable(f"no sandbox is started for what EGRESS_ALLOW names: {error}") from error

    async def _start(self, prepared: _Prepared, network: SandboxNetwork | None, layer: Layer | None) -> DockerSandbox:
        """Raises `PolicyError` when the network's policy cannot be set in the sandbox."""
        engine, owner = self._engine, self._owner
        name = f"continuum-{secrets.token_hex(6)}"
        policy = network.policy if network else EgressPolicy()
        specification = sandbox_specification(
            self._settings,
            prepared.image,
            BOOTSTRAP,
            owner.labels("sandbox"),
            network.id if network else "none",
            prepared.isolation,
            hosts=policy.extra_hosts,
            resolvers=policy.resolvers,
            layer=layer.name if layer else None,
        )
        stream: ContainerStream | None = None
        try:
            await engine.create(name, specification)
            if layer is not None:
                await self._layers.see_that_it_is_there(layer)
            stream = await engine.attach(name, stdin=True)
            channel = RunnerChannel(stream, name=name, limits=sandbox_limits(self._settings, prepared.isolation))
            running = trio.Event()
            with _first_failure():
                async with trio.open_nursery() as nursery:
                    if network is not None:
                        nursery.start_soon(restrict, engine, owner, prepared.image.tag, name, policy, running)
                    await engine.start(name)
                    running.set()
                    config = runner_config(self._settings, prepared.isolation, next(self._uids))
                    await self._boot(channel, stream, replace(config, path=(PLACE,)) if layer else config)
            memory_mb = self._settings.container_memory_mb if prepared.isolation.gvisor else None
            return DockerSandbox(engine, name, stream, channel, policy.allowlist, ends_beyond_mb=memory_mb)
        except BaseException:
            await engine.remove(name)
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise

    async def _boot(self, channel: RunnerChannel, stream: ContainerStream, config: RunnerConfig) -> None:
        try:
            await channel.boot(config)
        except SandboxLost as lost:
            raise BackendUnavailable(f"no runner answers in a new container: {lost}{stream.last_words}") from lost

    async def sweep(self, live_workers: Set[str]) -> int:
        now = time.time()
        left = [
            container
            for container in await self._containers()
            if Owner.from_labels(container["Labels"]).is_dead(self._owner, live_workers, now - container["Created"])
        ]
        removed = await self._remove(left)
        async with trio.open_nursery() as nursery:
            for name in list(self._engine.unremoved):
                nursery.start_soon(self._engine.remove, name)
        await self._layers.sweep(live_workers)
        return removed

    async def aclose(self) -> None:
        """Remove what a daemon kept that was down when it was told to remove it, and disconnect. Takes `CHECK_DEADLINE` and the
        engine's REMOVE_DEADLINE at most."""
        if self._answered:
            with trio.CancelScope(shield=True):
                await self._remove_all()
        if self._connected is not None:
            self._connected.close()

    async def _remove_all(self) -> None:
        try:
            listed = await self._containers(CHECK_DEADLINE)
        except EngineError as error:
            log.warning("containers may be left; the next worker on this host removes them", error=str(error))
        else:
            await self._remove(one for one in listed if one["Labels"][WORKER_LABEL] == self._owner.worker)

    async def _containers(self, deadline: float = CALL_DEADLINE) -> list[dict[str, Any]]:
        """The containers of all workers."""
        listed: list[dict[str, Any]] = await self._engine.call(
            lambda api: api.containers(all=True, filters={"label": WORKER_LABEL}), deadline=deadline
        )
        return listed

    async def _remove(self, containers: Iterable[dict[str, Any]]) -> int:
        """Remove containers; return how many of those removed are sandboxes."""
        removed = 0

        async def remove(container: dict[str, Any]) -> None:
            nonlocal removed
            # By name, which says what it is, where it still has one: no filter between worker and daemon knows an id.
            name = (container["Names"] or [container["Id"]])[0].lstrip("/")
            if await self._engine.remove(name) and container["Labels"].get(ROLE_LABEL) == "sandbox":
                removed += 1

        async with trio.open_nursery() as nursery:
            for container in containers:
                nursery.start_soon(remove, container)
        return removed

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


class DockerSandbox:
    """A container in which a runner waits for scripts.

    ends_beyond_mb: a script that takes more memory than this ends the sandbox with it, as on gVisor, whose kernel is what
    the host then kills; None where the host kills the script alone.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        stream: ContainerStream,
        channel: RunnerChannel,
        allowlist: Allowlist | None = None,
        *,
        ends_beyond_mb: int | None = None,
    ) -> None:
        self.name = name
        self._ends_beyond_mb = ends_beyond_mb
        self._allowlist = allowlist
        self._engine = engine
        self._stream = stream
        self._channel = channel

    @property
    def reusable(self) -> bool:
        """Whether the addresses that it was given for the names in EGRESS_ALLOW may still be used."""
        return self._allowlist is None or self._allowlist.is_current(trio.current_time())

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        said: dict[Stream, list[str]] = {Stream.OUTPUT: [], Stream.ERROR: []}

        def keep(stream: Stream, text: str) -> None:
            said[stream].append(text)
            sink(stream, text)

        began = time.time()
        try:
            return await self._channel.run(request, sink if self._ends_beyond_mb is None else keep)
        except SandboxLost as lost:
            over_the_script = lost.started or lost.amid_request
            if self._ends_beyond_mb is not None and over_the_script and await self._ran_out_of_memory(began):
                output, errors = ("".join(said[stream]) for stream in (Stream.OUTPUT, Stream.ERROR))
                message = f"Out of memory: used more than {self._ends_beyond_mb} MB, gVisor's own included"
                return Outcome(Ending.OUT_OF_MEMORY, 128 + signal.SIGKILL, output, errors, message)
            raise lost.retold(f"{lost}: {await self._autopsy()}") from lost

    async def _ran_out_of_memory(self, began: float) -> bool:
        """Whether the host killed for want of memory in this container since a moment (seconds since the epoch)."""
        with trio.move_on_after(AUTOPSY_DEADLINE) as scope:
            while True:
                try:
                    seen = await self._engine.events(self.name, ("oom", "die"), since=began)
                except EngineError as error:
                    log.debug("no word on why a sandbox ended", container=self.name, error=str(error))
                    return False
                if "oom" in seen:
                    return True
                if "die" in seen:  # that it was for want of memory may be told a moment later
                    scope.deadline = min(scope.deadline, trio.current_time() + LATE_EVENTS)
                await trio.sleep(0.05)
        return False

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
