"""The daemon goes away under running sandboxes and comes back: on a daemon of the test's own, never on the shared one."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
import trio

from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.protocol import BackendUnavailable, SandboxLost
from tests.support import docker as lab
from tests.support.dockerd import OwnDaemon, own_daemon

# A connection that the dying daemon refuses is left to the garbage collector by docker-py: see to it here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def daemon() -> Iterator[OwnDaemon]:
    with own_daemon() as own:
        yield own


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


async def test_what_could_not_be_removed_while_the_daemon_was_down_is_removed_when_the_backend_closes(
    daemon: OwnDaemon,
) -> None:
    worker = lab.new_worker()
    backend = DockerBackend(lab.settings(), worker)
    await backend.prepare()
    sandbox = await backend.start()
    await trio.to_thread.run_sync(daemon.stop, signal.SIGKILL)
    with trio.fail_after(5):
        await sandbox.aclose()
    await trio.to_thread.run_sync(daemon.start)
    with trio.fail_after(20):
        await backend.aclose()
        await lab.none_left(worker)
