"""How the death of a sandbox is told, and what is left of one whose worker dies."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import trio

import continuum.sandbox
from continuum.model import RunRequest, Stream
from continuum.sandbox.bubblewrap import BubblewrapBackend, BubblewrapSandbox
from continuum.sandbox.channel import BOOTSTRAP, RunnerConfig
from continuum.sandbox.protocol import SandboxLost
from tests.sandbox.conftest import Laboratory, open_laboratory
from tests.support import docker as lab

SLEEP = RunRequest(1, 1, "import time; print('on'); time.sleep(60)", "null", 60.0, 1000)


@pytest.fixture
async def laboratory(backend_name: str) -> AsyncIterator[Laboratory]:
    """A sandbox that nothing ran in before."""
    async with open_laboratory(backend_name) as laboratory:
        yield laboratory


def kill_from_outside(laboratory: Laboratory) -> None:
    """End a sandbox as its host might: kill its first process, or remove the container."""
    if isinstance(laboratory.sandbox, BubblewrapSandbox):
        laboratory.sandbox._process.kill()
    else:
        with lab.api() as client:
            lab.remove(client, laboratory.sandbox.name)


async def until_hung_up(laboratory: Laboratory) -> None:
    """Return once the end of a sandbox has come through to its worker's socket."""
    sandbox: Any = laboratory.sandbox
    bubblewrap = isinstance(sandbox, BubblewrapSandbox)
    stream = sandbox.channel._stream if bubblewrap else sandbox._stream._transport
    poll = select.poll()
    poll.register(stream._socket.fileno(), select.POLLRDHUP)
    with trio.fail_after(10):
        while not poll.poll(0):
            await trio.sleep(0.01)


async def test_a_sandbox_killed_under_a_script_is_lost_started_and_soon(laboratory: Laboratory) -> None:
    on = trio.Event()

    def watch(stream: Stream, text: str) -> None:
        on.set()

    async def kill() -> None:
        await on.wait()
        await trio.to_thread.run_sync(kill_from_outside, laboratory)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(SandboxLost) as caught:
                await laboratory.sandbox.run(SLEEP, watch)
    assert caught.value.started


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
async def test_a_sandbox_killed_while_idle_is_lost_unstarted(laboratory: Laboratory, used: bool) -> None:
    if used:
        assert await laboratory.usable()
    await trio.to_thread.run_sync(kill_from_outside, laboratory)
    await until_hung_up(laboratory)
    with trio.fail_after(10), pytest.raises(SandboxLost) as caught:
        await laboratory.sandbox.run(SLEEP, lambda *_: None)
    assert not caught.value.started


async def test_a_closed_sandbox_is_gone_and_may_be_closed_again(laboratory: Laboratory) -> None:
    await laboratory.sandbox.aclose()
    await laboratory.sandbox.aclose()
    with pytest.raises(SandboxLost):
        await laboratory.sandbox.run(SLEEP, lambda *_: None)


# -- a worker that dies ------------------------------------------------------------------------------------------------

WORKER = """
import sys, trio
from continuum.model import RunRequest
from continuum.sandbox.bubblewrap import BubblewrapBackend
from tests.support import docker as lab

async def work():
    sandbox = await BubblewrapBackend(lab.settings(), "test").start()
    await sandbox.run(RunRequest(1, 1, sys.argv[1], "null", 60.0, 1000), lambda stream, text: print(text, flush=True))

trio.run(work)
"""
STUBBORN = """
import os, signal, time
if os.fork() == 0: os.setsid()
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print("on")
time.sleep(60)
"""


def descendants(pid: int) -> set[int]:
    """The living processes below one, as /proc tells."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= level
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_worker_that_is_killed_leaves_no_process_behind() -> None:
    await BubblewrapBackend(lab.settings(), "test").check()
    worker = subprocess.Popen([sys.executable, "-c", WORKER, STUBBORN], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    try:
        with trio.fail_after(20):
            assert await trio.to_thread.run_sync(worker.stdout.readline, abandon_on_cancel=True) == b"on\n"
        inside = descendants(worker.pid)
        assert len(inside) >= 4, "bwrap, the runner, the script and its child"
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    with trio.fail_after(5):
        while any(map(alive, inside)):
            await trio.sleep(0.02)


# -- the runner by itself ----------------------------------------------------------------------------------------------


def prefixed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def bare_runner(config: RunnerConfig, *, then: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the runner on the host, in a session of its own; it is told a configuration and what follows."""
    source = Path(continuum.sandbox.__file__).with_name("runner.py").read_bytes()
    return subprocess.run(
        [sys.executable, *BOOTSTRAP[1:]],
        input=prefixed(source) + config.encode() + then,
        capture_output=True,
        timeout=20,
        start_new_session=True,
        check=False,
    )


@pytest.mark.skipif(os.getpid() <= 64 + 100, reason="the process ids here are low, as in a namespace of its own")
def test_a_runner_refuses_to_kill_everything_outside_of_its_own_process_namespace() -> None:
    ended = bare_runner(RunnerConfig(uid=None, gid=None))
    assert ended.returncode == 70
    assert ended.stdout[:1] == b"F"
    assert b"not in a process namespace of its own" in ended.stdout


def test_a_runner_ends_in_silence_when_its_worker_is_gone(tmp_path: Path) -> None:
    config = RunnerConfig(uid=None, gid=None, home=str(tmp_path), writable=(str(tmp_path),), kill_all=False)
    ended = bare_runner(config)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"R\0\0\0\0", b"")
    assert bare_runner(config, then=b"\0\0").returncode == 0, "in the middle of a request, too"


def unread(pipe: IO[bytes]) -> int:
    """How many bytes are in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@contextmanager
def ready_runner(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes], int]]:
    """A runner on the host that waits for a request: the process, its two streams, and the id of the child that it forked."""
    config = RunnerConfig(uid=None, gid=None, home=str(folder), writable=(str(folder),), kill_all=False)
    source = Path(continuum.sandbox.__file__).with_name("runner.py").read_bytes()
    with subprocess.Popen(
        [sys.executable, *BOOTSTRAP[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    ) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        runner.stdin.write(prefixed(source) + config.encode())
        assert runner.stdout.read(5) == b"R\0\0\0\0"
        (child,) = descendants(runner.pid)
        yield runner, runner.stdin, runner.stdout, child


def test_a_child_that_is_killed_while_it_waits_costs_no_attempt(tmp_path: Path) -> None:
    with ready_runner(tmp_path) as (runner, _, told, child):
        os.kill(child, signal.SIGKILL)
        assert told.read(1) == b"F", "before any request"
    assert runner.returncode == 70


def test_a_child_that_is_killed_before_it_reads_its_request_costs_no_attempt(tmp_path: Path) -> None:
    with ready_runner(tmp_path) as (runner, asked, told, child):
        os.kill(child, signal.SIGSTOP)
        asked.write(struct.pack("!IIQ", 10_000, 100, 100_000) + b"A" * 30_000)
        os.kill(child, signal.SIGKILL)
        assert told.read(1) == b"F"
    assert runner.returncode == 70


def test_a_request_that_was_not_read_to_its_end_is_not_taken_for_the_next(tmp_path: Path) -> None:
    with ready_runner(tmp_path) as (runner, asked, told, child):
        asked.write(struct.pack("!IIQ", 10_000, 100, 100_000) + b"A" * 30_000)
        deadline = time.monotonic() + 10
        while unread(asked):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        said = told.read(100_000)
        while piece := told.read(100_000):
            said += piece
    assert runner.returncode == 70
    kind, length = struct.unpack_from("!cI", said)
    assert (kind, json.loads(said[5 : 5 + length])["status"]) == (b"X", signal.SIGKILL), "its end is told"
    assert said[5 + length :].startswith(b"F"), "and the sandbox is given up, whatever is left in its input"
    assert b"not read to its end" in said


def test_a_runner_that_is_spoken_to_out_of_turn_gives_up(tmp_path: Path) -> None:
    config = RunnerConfig(uid=None, gid=None, home=str(tmp_path), writable=(str(tmp_path),), kill_all=False)
    meta = b"NAME=value\0"
    body = prefixed(meta) + prefixed(b"import time; time.sleep(10)") + prefixed(b"null")
    ended = bare_runner(config, then=struct.pack("!IIQ", 10_000, 100, len(body)) + body + b"more")
    assert ended.returncode == 70
    assert b"out of turn" in ended.stdout
