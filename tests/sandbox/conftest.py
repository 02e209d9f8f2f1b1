"""Real sandboxes of every backend, for the tests that hold all of them to one behaviour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from continuum.model import Ending, Outcome, RunRequest
from continuum.sandbox import docker_network
from continuum.sandbox.bubblewrap import BubblewrapBackend
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.protocol import BackendUnavailable, Sandbox, SandboxLost
from tests.conftest import require
from tests.support import docker as lab
from tests.support import package_index as shop
from tests.support.package_index import Index
from tests.support.world import World, open_world

MEMORY_MB = {"bubblewrap": 128, "docker": 128, "runsc": 512}
"""By backend. gVisor takes some for itself, and for each process."""
DISK_MB = 16
PIDS = 40

whatever_the_kernel = pytest.mark.parametrize("backend_name", ["bubblewrap", "docker"])
"""Marks what the kernel has no part in, as how a traceback looks: gVisor would show nothing new, and its starts take long."""


class Laboratory:
    """A sandbox of one backend, and how to run scripts in it. backend: `runsc` is Docker's with gVisor."""

    def __init__(self, backend: str, sandbox: Sandbox, made_by: DockerBackend | None = None) -> None:
        self.backend = backend
        self._made_by = made_by
        self.sandbox = sandbox
        self.memory_mb = MEMORY_MB[backend]

    async def run(self, code: str, **values: Any) -> Outcome:
        """Run a script, with what differs from the usual request."""
        given = {"task_id": 7, "attempt": 3, "payload": "null", "timeout": 20.0, "output_limit": 65536, **values}
        return await self.sandbox.run(RunRequest(code=code, **given), lambda *_: None)

    async def printed(self, code: str, **values: Any) -> str:
        """What a script prints that must end well and complain of nothing."""
        outcome = await self.run(code, **values)
        assert (outcome.ending, outcome.error_output) == (Ending.COMPLETED, ""), outcome
        return outcome.output

    async def usable(self, *, unless_gvisor_died: bool = False) -> bool:
        """Whether the same sandbox runs the next script as if nothing had been.

        unless_gvisor_died: what the host kills for want of memory is gVisor, and so the sandbox; then whether it says
        that it is no more, before a script has begun, so that the pool takes another.
        """
        try:
            return await self.printed("print('fine')") == "fine\n"
        except SandboxLost as lost:
            return unless_gvisor_died and self.backend == "runsc" and not lost.started

    async def aclose(self) -> None:
        """Remove the sandbox, and see that nothing of it is left."""
        await self.sandbox.aclose()
        if self._made_by is not None:
            await lab.none_left(self._made_by._owner.worker)
            await self._made_by.aclose()


async def start_laboratory(name: str, **values: Any) -> Laboratory:
    """A started sandbox of a backend, small, so that scripts reach its limits soon."""
    small = {
        "container_memory_mb": MEMORY_MB[name],
        "container_disk_mb": DISK_MB,
        "container_pids_limit": PIDS,
        "container_cpu_limit": 2.0,
        **values,
    }
    if name == "bubblewrap":
        try:
            return Laboratory(name, await BubblewrapBackend(lab.settings(**small), lab.new_worker()).start())
        except BackendUnavailable as error:
            require("bubblewrap", False, str(error))
            raise
    lab.require_docker()
    if name == "runsc":
        lab.require_gvisor()
        small["container_runtime"] = name
    backend = DockerBackend(lab.settings(**small), lab.new_worker())
    await backend.prepare()
    return Laboratory(name, await backend.start(), backend)


@asynccontextmanager
async def open_laboratory(name: str, **values: Any) -> AsyncIterator[Laboratory]:
    """As `start_laboratory`, for the length of the block."""
    laboratory = await start_laboratory(name, **values)
    try:
        yield laboratory
    finally:
        await laboratory.aclose()


class Kept:
    """Sandboxes that tests use one after another, as tasks do: to start one takes longer than most tests."""

    def __init__(self) -> None:
        self._laboratories: dict[str, Laboratory] = {}

    async def take(self, name: str) -> Laboratory:
        """What the test before has left behind, or a new one where that is of no use any more."""
        laboratory = self._laboratories.pop(name, None)
        if laboratory is not None and not await laboratory.usable():
            await laboratory.aclose()
            laboratory = None
        return self._laboratories.setdefault(name, laboratory or await start_laboratory(name))

    async def aclose(self) -> None:
        for laboratory in self._laboratories.values():
            await laboratory.aclose()


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """Sandboxes of one kind for all tests of a module."""
    kept = Kept()
    yield kept
    trio.run(kept.aclose)


@pytest.fixture(params=["bubblewrap", "docker", "runsc"])
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def laboratory(backend_name: str, kept: Kept) -> Laboratory:
    return await kept.take(backend_name)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    lab.require_docker()
    with open_world() as world:
        yield world


@pytest.fixture
def network_of_the_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker backends use the world's network, although its members may talk to each other."""
    monkeypatch.setattr(docker_network, "NETWORK", world.network)
    monkeypatch.setattr(docker_network, "NETWORK_OPTIONS", {})


@pytest.fixture
def layers_apart(world: World) -> Iterator[None]:
    """Layers are found and made under names of the test's own, by builders from which all routes lead into the world."""
    with shop.layers_of_its_own(), shop.builders_in(world):
        yield


@pytest.fixture(scope="module")
def index(world: World) -> Iterator[Index]:
    """A package index in the world."""
    with shop.open_index(world) as index:
        yield index
