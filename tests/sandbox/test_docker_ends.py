"""How sandboxes end on a real daemon: noticed at once, and with no container left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
import structlog
import trio
import trio.testing

from continuum.model import Ending
from continuum.sandbox import docker_engine
from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_stream import Endpoint, EngineNotFound
from continuum.sandbox.protocol import BackendUnavailable, SandboxLost
from tests.support import docker as lab

FOR_EVER = "import time; print('up', flush=True); time.sleep(60)"


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


async def lost_while_running(sandbox: DockerSandbox, kill: Callable[[], None]) -> SandboxLost:
    """How it looks to the worker when `kill` ends a sandbox in which a script runs."""
    seen = trio.Event()
    lost: list[SandboxLost] = []

    async def run_for_ever() -> None:
        try:
            await sandbox.run(lab.request(FOR_EVER), lambda *_: seen.set())
        except SandboxLost as error:
            lost.append(error)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_for_ever)
            await seen.wait()
            await trio.to_thread.run_sync(kill)
    return lost[0]


async def test_a_container_removed_under_a_script_is_noticed_at_once(sandbox: DockerSandbox) -> None:
    def remove() -> None:
        with lab.api() as client:
            client.remove_container(sandbox.name, force=True)

    started = time.monotonic()
    lost = await lost_while_running(sandbox, remove)
    assert time.monotonic() - started < 3
    assert lost.started
    assert sandbox.name in str(lost)


async def test_a_runner_that_was_killed_is_told_from_a_script_that_was(sandbox: DockerSandbox) -> None:
    def kill_runner() -> None:
        with lab.api() as client:
            os.kill(client.inspect_container(sandbox.name)["State"]["Pid"], signal.SIGKILL)

    lost = await lost_while_running(sandbox, kill_runner)
    assert "the sandbox ended" in str(lost)
    assert sandbox.name in str(lost)


async def test_a_dead_sandbox_says_that_no_script_began(sandbox: DockerSandbox) -> None:
    with lab.api() as client:
        client.kill(sandbox.name)
    # The runner's `ready` of before is still on its way; the request after it finds nobody.
    with trio.fail_after(10), pytest.raises(SandboxLost):
        while True:
            await lab.output_of(sandbox, "print('too late')")


async def test_running_out_of_memory_ends_the_script_and_not_the_sandbox() -> None:
    async with lab.open_backend(container_memory_mb=64) as backend:
        sandbox = await backend.start()
        try:
            outcome = await sandbox.run(lab.request("hog = b'x' * (1 << 30)"), lab.ignore_output)
            assert outcome.ending is Ending.OUT_OF_MEMORY
            assert await lab.output_of(sandbox, "print('next')") == "next\n"
        finally:
            await sandbox.aclose()


async def test_closing_is_idempotent_and_does_not_mind_what_is_gone(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    await sandbox.aclose()
    await sandbox.aclose()
    gone = await backend.start()
    with lab.api() as client:
        client.remove_container(gone.name, force=True)
    await gone.aclose()


async def test_several_may_remove_the_same_container(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(sandbox.aclose)


async def test_closing_the_input_is_enough_to_remove_a_sandbox(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    await trio.aclose_forcefully(sandbox._stream)
    await lab.none_left(worker_of(backend), within=5)


async def test_a_cancelled_run_leaves_no_container(backend: DockerBackend) -> None:
    sandbox = await backend.start()
    seen = trio.Event()

    async def run_for_ever() -> None:
        try:
            await sandbox.run(lab.request(FOR_EVER), lambda *_: seen.set())
        finally:
            with trio.CancelScope(shield=True):
                await sandbox.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for_ever)
        with trio.fail_after(10):
            await seen.wait()
        nursery.cancel_scope.cancel()
    assert not lab.containers(worker_of(backend))


@pytest.mark.parametrize("egress", ["none", "public"])
async def test_a_cold_start_cancelled_anywhere_leaves_no_container(egress: str) -> None:
    async with lab.open_backend(egress=egress) as backend:
        finished = 0

        async def start(patience: float) -> None:
            nonlocal finished
            with trio.move_on_after(patience):
                sandbox = await backend.start()
                finished += 1
                await sandbox.aclose()

        async with trio.open_nursery() as nursery:
            for step in range(16):
                nursery.start_soon(start, 0.001 + step * 0.045)
        assert finished < 16, "some must have been cancelled"
        await lab.none_left(worker_of(backend))


async def test_a_container_created_for_nobody_is_removed_by_its_thread(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()
    create: Any = docker.APIClient.create_container_from_config

    def slow(self: Any, *args: Any) -> Any:
        asked.set()
        assert answer.wait(20)
        return create(self, *args)

    monkeypatch.setattr(docker.APIClient, "create_container_from_config", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.start)
        await lab.eventually(asked.is_set)
        nursery.cancel_scope.cancel()
    # The worker has turned to other things; only now does the daemon make the container.
    assert not lab.containers(worker_of(backend))
    answer.set()
    await lab.eventually(lambda: not any(t.name.startswith("Trio") and _busy(t) for t in threading.enumerate()))
    await lab.none_left(worker_of(backend))


def _busy(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "slow":
            return True
        frame = frame.f_back
    return False


@contextmanager
def docker_host(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[DockerBackend]:
    monkeypatch.setenv("DOCKER_HOST", url)
    yield DockerBackend(lab.settings(), lab.new_worker())


@pytest.mark.parametrize("url", ["unix:///nowhere/docker.sock", "ssh://nobody@nowhere"])
async def test_without_a_daemon_everything_is_unavailable_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with docker_host(monkeypatch, url) as backend:
        for attempt in (backend.check, backend.prepare):
            with pytest.raises(BackendUnavailable, match="DOCKER_HOST"):
                await attempt()
        with pytest.raises(BackendUnavailable, match="DOCKER_HOST"):
            await backend.sweep(set())
        with structlog.testing.capture_logs() as logs:
            await backend.aclose()
        assert not logs, "nothing can be left"


async def test_a_daemon_that_hangs_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("continuum.sandbox.docker.CHECK_DEADLINE", 0.2)
    monkeypatch.setattr(docker_engine, "REMOVE_DEADLINE", 0.2)
    path = tmp_path / "docker.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(path))
        listening.listen()
        with docker_host(monkeypatch, f"unix://{path}") as backend, trio.fail_after(5):
            with pytest.raises(BackendUnavailable, match="did not answer"):
                await backend.check()
            assert not await backend._engine.remove("any")
            await backend.aclose()


async def test_a_container_that_never_was_is_told_apart_from_a_daemon_that_fails() -> None:
    engine = Engine(Endpoint.from_environment({}))
    try:
        with pytest.raises(EngineNotFound):
            await engine.inspect("continuum-never-was")
        with pytest.raises(EngineNotFound):
            await engine.attach("continuum-never-was")
        assert await engine.remove("continuum-never-was")
    finally:
        engine.close()


def test_the_labels_of_a_sandbox_name_its_worker() -> None:
    labels = Owner.current(lab.settings(), "worker-1").labels("sandbox")
    assert labels["continuum.worker"] == "worker-1"
    assert labels["continuum.pid"] == str(os.getpid())
