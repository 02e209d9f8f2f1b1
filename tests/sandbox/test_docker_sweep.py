"""What dead workers leave on a real daemon goes, and what living ones use stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from continuum.sandbox import docker_engine
from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.protocol import SandboxLost
from tests.support import docker as lab


@pytest.fixture(autouse=True, scope="module")
def _docker() -> None:
    lab.require_docker()


@pytest.fixture
async def backend() -> AsyncIterator[DockerBackend]:
    async with lab.open_backend() as backend:
        yield backend


@pytest.fixture
async def sandbox(backend: DockerBackend) -> AsyncIterator[DockerSandbox]:
    sandbox = await backend.start()
    yield sandbox
    await sandbox.aclose()


def worker_of(backend: DockerBackend) -> str:
    return backend._owner.worker


@contextmanager
def worker_process(worker: str, code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process with a prepared backend, in which `code` runs; it has said `up` when this gives it."""
    program = f"""
import trio
from tests.support import docker as lab
from continuum.sandbox.docker import DockerBackend

async def main():
    backend = DockerBackend(lab.settings(), {worker!r})
    await backend.prepare()
{code}
    print("up", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line == "up\n" for line in lines), "the process ended early"
            yield process
        finally:
            process.kill()


BUSY_SANDBOX = """
    sandbox = await backend.start()
    seen = trio.Event()
    async def run():
        await sandbox.run(lab.request("import time; print(1, flush=True); time.sleep(60)"), lambda *_: seen.set())
    trio.lowlevel.spawn_system_task(run)
    await seen.wait()
    idle = await backend.start()
"""
CREATED_ONLY = """
    from continuum.sandbox.docker_specification import sandbox_specification
    specification = sandbox_specification(
        backend._settings, backend._prepared.image, ["sleep", "60"], backend._owner.labels("sandbox"), "none",
        backend._prepared.isolation,
    )
    specification["HostConfig"]["AutoRemove"] = False
    for name in ("created", "running", "exited"):
        await backend._engine.create(f"{backend._owner.worker}-{name}", specification)
    await backend._engine.start(f"{backend._owner.worker}-running")
    await backend._engine.start(f"{backend._owner.worker}-exited")
    await backend._engine.call(lambda api: api.kill(f"{backend._owner.worker}-exited"))
"""


async def test_a_worker_killed_with_kill_9_leaves_no_container_for_long() -> None:
    worker = lab.new_worker()
    with worker_process(worker, BUSY_SANDBOX) as process:
        assert len(lab.containers(worker)) == 2
        process.send_signal(signal.SIGKILL)
        await lab.none_left(worker, within=5)


async def test_what_a_dead_worker_left_in_any_state_is_swept(backend: DockerBackend) -> None:
    worker = lab.new_worker()
    with worker_process(worker, CREATED_ONLY) as process:
        # Containers stay when their process is alive, whatever the database says of it.
        await backend.sweep(set())
        states = sorted(container["State"] for container in lab.containers(worker))
        assert states == ["created", "exited", "running"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        await backend.sweep({worker})
        assert not lab.containers(worker)


async def test_a_sweep_leaves_the_living_alone(backend: DockerBackend, sandbox: DockerSandbox) -> None:
    async with lab.open_backend() as neighbour:
        theirs = await neighbour.start()
        try:
            await backend.sweep(set())
            await neighbour.sweep(set())
            assert await lab.output_of(sandbox, "print(1)") == await lab.output_of(theirs, "print(1)") == "1\n"
        finally:
            await theirs.aclose()


async def test_a_worker_of_another_namespace_is_swept_when_the_database_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("continuum.sandbox.docker_owner.UNREGISTERED", -3600)
    # A database of the test's own, for nobody else may take the other for dead.
    database = lab.new_worker()
    async with lab.open_backend(db_name=database) as backend, lab.open_backend(db_name=database) as other:
        other._owner = replace(other._owner, process=replace(other._owner.process, namespace="1"))
        kept = await other.start()
        await backend.sweep({worker_of(other)})
        assert await lab.output_of(kept, "print(1)") == "1\n"
        assert await backend.sweep(set()) >= 1
        with pytest.raises(SandboxLost):
            while True:
                await lab.output_of(kept, "print(1)")
        await kept.aclose()


async def test_what_could_not_be_removed_is_removed_by_the_next_sweep(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await backend.start()
    release = threading.Event()
    with monkeypatch.context() as hanging:
        hanging.setattr(docker_engine, "REMOVE_DEADLINE", 0.2)
        hanging.setattr(docker.APIClient, "remove_container", lambda *_, **__: release.wait(20))
        # Only the daemon could have removed it, and it hangs; the sandbox's input stays open.
        assert not await backend._engine.remove(sandbox.name)
    assert lab.containers(worker_of(backend))
    release.set()
    await backend.sweep(set())
    assert not lab.containers(worker_of(backend))
    await sandbox.aclose()
