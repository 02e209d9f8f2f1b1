"""What a container is as a sandbox, and how it starts, on a real daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.protocol import BackendUnavailable
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


def worker_of(backend: DockerBackend) -> str:
    return backend._owner.worker


async def test_the_limits_are_in_force_on_the_container() -> None:
    async with lab.open_backend(container_memory_mb=96, container_cpu_limit=0.25, container_pids_limit=24) as backend:
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
            assert await lab.output_of(sandbox, "print('hello')") == "hello\n"
        finally:
            await sandbox.aclose()


async def test_a_script_has_no_capability_and_its_runner_four(sandbox: DockerSandbox) -> None:
    print_rights = (
        "print(*[line.split()[1] for line in open('/proc/self/status') if line[:3] in ('Cap', 'NoN', 'Sec')])"
    )
    inherited, permitted, effective, bounding, ambient, no_new_privileges, seccomp, *_ = (
        await lab.output_of(sandbox, print_rights)
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
    assert (await lab.output_of(sandbox, find)).split() == ["/dev/mqueue", "/dev/shm", "/sandbox", "/tmp"]


async def test_a_script_can_leave_no_message_queue(sandbox: DockerSandbox) -> None:
    attempt = "import ctypes; print(ctypes.CDLL(None, use_errno=True).mq_open(b'/left', 0o102, 0o600, None))"
    assert await lab.output_of(sandbox, attempt) == "-1\n"


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
        assert "secret" not in await lab.output_of(sandbox, "import os; print(os.environ)")
    finally:
        await sandbox.aclose()


async def test_the_host_is_called_sandbox(sandbox: DockerSandbox) -> None:
    assert await lab.output_of(sandbox, "import socket; print(socket.gethostname())") == "sandbox\n"


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
            assert await lab.output_of(sandbox, f"print({number})") == f"{number}\n"
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


async def test_each_sandbox_has_a_user_of_its_own_by_the_same_name(backend: DockerBackend) -> None:
    """The kernel counts inotify instances, pending signals and more by user, for the whole host."""
    found = set()
    for _ in range(2):
        sandbox = await backend.start()
        try:
            look = "import grp, os, pwd; uid, gid = os.getuid(), os.getgid()\n"
            look += "print(uid, gid, pwd.getpwuid(uid)[0], grp.getgrgid(gid)[0])"
            uid, gid, user, group = (await lab.output_of(sandbox, look)).split()
        finally:
            await sandbox.aclose()
        assert (user, group, gid) == ("sandboxuser", "sandboxuser", uid)
        found.add(uid)
    assert len(found) == 2
