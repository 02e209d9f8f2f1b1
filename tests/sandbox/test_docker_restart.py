"""The daemon goes away under running sandboxes and comes back: on a daemon of the test's own, never on the shared one."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.protocol import BackendUnavailable, SandboxLost
from tests.conftest import require
from tests.support import docker as lab

# A connection that the dying daemon refuses is left to the garbage collector by docker-py: see to it here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class OwnDaemon:
    """A second dockerd with its own state and, so that it touches no bridge of the host, its own network namespace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        folder = self._folder
        # Where nobody collects the containerd of a killed dockerd, the next one would wait for it.
        (folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net", "dockerd", "--host", self.url, "--data-root", folder / "data",
                 "--exec-root", folder / "exec", "--pidfile", folder / "pid", "--bridge", "none",
                 "--iptables=false", "--ip6tables=false"],
                stdout=log, stderr=log,
            )  # fmt: skip
        trio.run(lab.eventually, self._answers, 20.0)

    def _answers(self) -> bool:
        return self.docker("version").returncode == 0

    def docker(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        command = ["docker", "--host", self.url, *arguments]
        return subprocess.run(command, capture_output=True, **options)  # type: ignore[call-overload, no-any-return]

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def clean_up(self) -> None:
        """Leave neither process, mount nor file behind, whatever state it is in."""
        if self._process is None:
            self.start()  # what outlived a killed daemon ends with the next
        self.stop()
        subprocess.run(["umount", self._folder / "data"], capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def copy_image(self, image: str) -> None:
        """Give it what sandboxes need of an image of the shared daemon."""
        pack = [
            "tar",
            "-C",
            "/",
            "-c",
            "--exclude=usr/share",
            "bin",
            "sbin",
            "lib",
            "lib64",
            "etc",
            "usr",
            "tmp",
            "run",
        ]
        read = ["docker", "run", "--rm", "--network", "none", image, *pack]
        with subprocess.Popen(read, stdout=subprocess.PIPE) as reading:
            assert self.docker("import", "-", image, stdin=reading.stdout).returncode == 0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnDaemon]:
    lab.require_docker()
    missing = [program for program in ("dockerd", "docker", "unshare") if shutil.which(program) is None]
    require("dockerd", os.geteuid() == 0 and not missing, f"needs root and {missing or 'nothing else'}")
    folder = tmp_path_factory.mktemp("dockerd")
    own = OwnDaemon(folder)
    try:
        own.start()
        own.copy_image(lab.IMAGE)
        yield own
        assert own.docker("ps", "--all", "--quiet").stdout == b""
    finally:
        own.clean_up()


@pytest.fixture(autouse=True)
def _docker_host(daemon: OwnDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DOCKER_HOST", daemon.url)
    yield
    gc.collect()


async def hold(sandbox: DockerSandbox, running: trio.Event) -> SandboxLost:
    """Run a script that does not end by itself, and return how its sandbox was lost."""
    try:
        await sandbox.run(lab.request("import time; print(1, flush=True); time.sleep(60)"), lambda *_: running.set())
    except SandboxLost as lost:
        return lost
    raise AssertionError("the script ended by itself")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_scripts_are_lost_with_the_daemon_and_sandboxes_start_again_after_it(
    daemon: OwnDaemon, number: signal.Signals
) -> None:
    worker = lab.new_worker()
    backend = DockerBackend(lab.settings(), worker)
    await backend.prepare()
    sandbox = await backend.start()
    running, lost = trio.Event(), []

    async def watch() -> None:
        lost.append(await hold(sandbox, running))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await running.wait()
            await trio.to_thread.run_sync(daemon.stop, number)
    assert lost[0].started
    assert sandbox.name in str(lost[0]) or "daemon" in str(lost[0])
    with trio.fail_after(5):
        await sandbox.aclose()
        for attempt in (backend.check, backend.prepare, backend.start):
            with pytest.raises(BackendUnavailable):
                await attempt()

    await trio.to_thread.run_sync(daemon.start)
    with trio.fail_after(20):
        await backend.prepare()
        await backend.sweep(set())
        again = await backend.start()
        outcome = await again.run(lab.request("print('back')"), lab.ignore_output)
        assert outcome.output == "back\n"
        await again.aclose()
        await lab.none_left(worker)
    await backend.aclose()
