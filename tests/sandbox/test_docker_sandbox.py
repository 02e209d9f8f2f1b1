"""Containers as sandboxes on a real daemon: what they may do, how they end, and that none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
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

MEBIBYTE = 1024 * 1024


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


async def run(sandbox: DockerSandbox, code: str) -> str:
    outcome = await sandbox.run(lab.request(code), lab.ignore_output)
    assert outcome.ending is Ending.COMPLETED, outcome
    return outcome.output


def worker_of(backend: DockerBackend) -> str:
    return backend._owner.worker


async def wait_for_output(seen: trio.Event) -> None:
    with trio.fail_after(10):
        await seen.wait()


# What a sandbox is


async def test_the_limits_are_in_force_on_the_container() -> None:
    values = {"container_memory_mb": 96, "container_cpu_limit": 0.25, "container_pids_limit": 24}
    async with lab.open_backend(**values) as backend:
        sandbox = await backend.start()
        try:
            with lab.api() as client:
                host = client.inspect_container(sandbox.name)["HostConfig"]
            assert (host["Memory"], host["MemorySwap"]) == (96 * MEBIBYTE, 96 * MEBIBYTE)
            assert (host["NanoCpus"], host["PidsLimit"]) == (250_000_000, 24)
            assert host["ReadonlyRootfs"]
            assert not host["Privileged"]
            assert host["SecurityOpt"] == ["no-new-privileges"], "and so Docker's own seccomp filter"
            assert host["CapDrop"] == ["ALL"]
            assert host["NetworkMode"] == "none"
            assert host["Binds"] is None
            assert host["LogConfig"]["Type"] == "none"
        finally:
            await sandbox.aclose()


async def test_a_sandbox_with_the_smallest_limits_still_works() -> None:
    async with lab.open_backend(container_memory_mb=32, container_pids_limit=8, container_disk_mb=1) as backend:
        sandbox = await backend.start()
        try:
            assert await run(sandbox, "print('hello')") == "hello\n"
        finally:
            await sandbox.aclose()


async def test_a_script_has_no_capability_and_its_runner_four(sandbox: DockerSandbox) -> None:
    print_rights = (
        "print(*[line.split()[1] for line in open('/proc/self/status') if line[:3] in ('Cap', 'NoN', 'Sec')])"
    )
    inherited, permitted, effective, bounding, ambient, no_new_privileges, seccomp, *_ = (
        await run(sandbox, print_rights)
    ).split()
    assert {inherited, permitted, effective, ambient} == {"0" * 16}
    dac_override, kill, setgid, setuid = 1, 5, 6, 7
    assert int(bounding, 16) == 1 << dac_override | 1 << kill | 1 << setgid | 1 << setuid
    assert no_new_privileges == "1"
    assert seccomp == "2", "filtered"


async def test_a_script_can_write_to_its_temporary_places_and_nowhere_else(sandbox: DockerSandbox) -> None:
    find = """
import os
found = set()
for top, directories, _ in os.walk("/"):
    directories[:] = [name for name in directories if os.path.join(top, name) not in ("/proc", "/sys")]
    if os.access(top, os.W_OK):
        found.add("/" + top.strip("/").split("/")[0] if not top.startswith("/dev/") else top)
print(*sorted(found))
"""
    assert (await run(sandbox, find)).split() == ["/dev/mqueue", "/dev/shm", "/sandbox", "/tmp"]


async def test_a_script_can_leave_no_message_queue(sandbox: DockerSandbox) -> None:
    attempt = "import ctypes; print(ctypes.CDLL(None, use_errno=True).mq_open(b'/left', 0o102, 0o600, None))"
    assert await run(sandbox, attempt) == "-1\n"


async def test_a_sandbox_knows_nothing_of_its_workers_environment(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The Docker client's configuration, too, is something that docker-py would like to pass on.
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": "http://secret"}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("CONTINUUM_SECRET", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://secret")
    sandbox = await backend.start()
    try:
        environment = await lab.execute(sandbox.name, "import os; print(os.environ)", user="0:0")
        assert "PATH" in environment
        assert "secret" not in environment
        assert "secret" not in await run(sandbox, "import os; print(os.environ)")
    finally:
        await sandbox.aclose()


async def test_the_host_is_called_sandbox(sandbox: DockerSandbox) -> None:
    assert await run(sandbox, "import socket; print(socket.gethostname())") == "sandbox\n"


# Cold starts


async def test_four_sandboxes_start_at_once(backend: DockerBackend) -> None:
    sandboxes: list[DockerSandbox] = []

    async def start() -> None:
        sandboxes.append(await backend.start())

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(start)
    async with trio.open_nursery() as nursery:
        for number, sandbox in enumerate(sandboxes):
            assert await run(sandbox, f"print({number})") == f"{number}\n"
            nursery.start_soon(sandbox.aclose)
    assert len({sandbox.name for sandbox in sandboxes}) == 4


async def test_a_start_before_preparation_is_refused() -> None:
    backend = DockerBackend(lab.settings(), lab.new_worker())
    with pytest.raises(BackendUnavailable, match="prepared"):
        await backend.start()
    await backend.aclose()


async def test_an_unknown_runtime_is_told_in_the_daemons_words() -> None:
    async with lab.open_backend(container_runtime="no-such-runtime") as backend:
        with pytest.raises(BackendUnavailable, match="no-such-runtime"):
            await backend.start()


async def test_an_image_that_was_pruned_is_made_again_by_the_next_preparation(backend: DockerBackend) -> None:
    assert backend._prepared is not None
    backend._prepared = replace(backend._prepared, image=replace(backend._prepared.image, tag="continuum-sandbox:none"))
    with pytest.raises(BackendUnavailable, match="No such image"):
        await backend.start()
    await backend.prepare()
    await (await backend.start()).aclose()


async def test_a_container_whose_runner_cannot_start_says_why(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("continuum.sandbox.docker.BOOTSTRAP", ("python3", "-c", "raise RuntimeError('broken image')"))
    with pytest.raises(BackendUnavailable, match=r"no runner answers .*; it said: RuntimeError: broken image$"):
        await backend.start()
    await lab.none_left(worker_of(backend))


# Ends


async def lost_while_running(sandbox: DockerSandbox, kill: Any) -> SandboxLost:
    """How a running script's end looks to the worker when `kill` is called under it."""
    seen = trio.Event()
    with trio.fail_after(10), pytest.raises(SandboxLost) as caught:
        async with trio.open_nursery() as nursery:

            async def kill_when_running() -> None:
                await seen.wait()
                await trio.to_thread.run_sync(kill)

            nursery.start_soon(kill_when_running)
            # Plain, for pytest: what the nursery raises is a group.
            try:
                await sandbox.run(
                    lab.request("import time; print('up', flush=True); time.sleep(60)"), lambda *_: seen.set()
                )
            except SandboxLost as lost:
                error = lost
        raise error
    return caught.value


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
            await run(sandbox, "print('too late')")


async def test_running_out_of_memory_ends_the_script_and_not_the_sandbox() -> None:
    async with lab.open_backend(container_memory_mb=64) as backend:
        sandbox = await backend.start()
        try:
            outcome = await sandbox.run(lab.request("hog = b'x' * (1 << 30)"), lab.ignore_output)
            assert outcome.ending is Ending.OUT_OF_MEMORY
            assert await run(sandbox, "print('next')") == "next\n"
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
            await sandbox.run(lab.request("import time; print(1, flush=True); time.sleep(60)"), lambda *_: seen.set())
        finally:
            with trio.CancelScope(shield=True):
                await sandbox.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for_ever)
        await wait_for_output(seen)
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
    create = docker.APIClient.create_container_from_config

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


# Dead workers


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
        backend._settings, backend._prepared.image, ["sleep", "60"], backend._owner.labels("sandbox"), "none"
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
        assert await backend.sweep({worker}) == 3
        assert not lab.containers(worker)


async def test_a_sweep_leaves_the_living_alone(backend: DockerBackend, sandbox: DockerSandbox) -> None:
    async with lab.open_backend() as neighbour:
        theirs = await neighbour.start()
        try:
            await backend.sweep(set())
            await neighbour.sweep(set())
            assert await run(sandbox, "print(1)") == await run(theirs, "print(1)") == "1\n"
        finally:
            await theirs.aclose()


async def test_a_worker_of_another_namespace_is_swept_when_the_database_says_so(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("continuum.sandbox.docker_owner.UNREGISTERED", -3600)
    async with lab.open_backend() as other:
        other._owner = replace(other._owner, process=replace(other._owner.process, namespace="1"))
        kept = await other.start()
        assert await backend.sweep({other._owner.worker}) == 0
        assert await run(kept, "print(1)") == "1\n"
        assert await backend.sweep(set()) == 1
        with pytest.raises(SandboxLost):
            while True:
                await run(kept, "print(1)")
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


# A daemon that does not answer


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
        await backend.aclose()


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
