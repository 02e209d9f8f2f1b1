"""Honest tasks beside hostile ones, from one pool: all finish, and so do those that get the attackers' sandboxes later."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from continuum.model import Ending, Outcome, RunRequest
from continuum.sandbox.bubblewrap import BubblewrapBackend
from continuum.sandbox.pool import SandboxPool, open_pool
from continuum.sandbox.protocol import Backend, BackendUnavailable, SandboxLost
from tests.conftest import require
from tests.support import docker as lab

ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory hog": """
import os
while True:
    if os.fork() == 0:
        block = bytearray(1 << 30)
        for i in range(0, 1 << 30, 4096): block[i] = 1
    os.wait()
""",
    "disk filler": """
import itertools
for number in itertools.count():
    for place in ("/tmp", "/dev/shm", "."):
        try: open(f"{place}/{number}", "wb").write(bytes(1 << 12))
        except OSError: pass
""",
    "output flood": "import os\nblock = b'x' * 65536\nwhile True: os.write(1, block); os.write(2, block)",
    "inotify hog": """
import ctypes
libc = ctypes.CDLL(None)
while True: libc.inotify_init1(0)
""",
}
HONEST = """
import ctypes, hashlib, os, subprocess, sys, tempfile, threading
with tempfile.NamedTemporaryFile() as file:
    file.write(bytes(1 << 20))
    file.flush()
    digest = hashlib.sha256(open(file.name, "rb").read()).hexdigest()
thread = threading.Thread(target=print, args=(digest[:8],))
thread.start()
thread.join()
libc = ctypes.CDLL(None, use_errno=True)
print(libc.inotify_init1(0) >= 0, subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout)
"""


async def run(pool: SandboxPool, code: str, timeout: float) -> Outcome:
    async with pool.sandbox() as sandbox:
        return await sandbox.run(RunRequest(1, 1, code, "null", timeout, 65536), lambda *_: None)


async def all_honest_finish(backend: Backend) -> None:
    attacking = 0

    async def attack(pool: SandboxPool, code: str) -> None:
        """Over and over, whatever it costs its sandbox."""
        nonlocal attacking
        attacking += 1
        while True:
            with suppress(SandboxLost):
                await run(pool, code, timeout=1.5)

    honest: list[Outcome] = []

    async def be_honest(pool: SandboxPool) -> None:
        for _ in range(5):
            honest.append(await run(pool, HONEST, timeout=60))  # noqa: PERF401

    async with open_pool(backend, len(ATTACKS) + 4) as pool:
        await pool.warm(len(ATTACKS))
        async with trio.open_nursery() as attackers:
            for code in ATTACKS.values():
                attackers.start_soon(attack, pool, code)
            with trio.fail_after(120):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(be_honest, pool)
            assert attacking == len(ATTACKS)
            attackers.cancel_scope.cancel()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(be_honest, pool)
    assert len(honest) == 40
    assert {(outcome.ending, outcome.output) for outcome in honest} == {(Ending.COMPLETED, "30e14955\nTrue 1\n\n")}


@pytest.mark.parametrize("backend_name", ["docker", "bubblewrap"])
async def test_honest_tasks_finish_beside_attackers_and_after_them(backend_name: str) -> None:
    small = {"container_memory_mb": 64, "container_disk_mb": 8, "container_pids_limit": 40, "container_cpu_limit": 0.2}
    if backend_name == "docker":
        lab.require_docker()
        async with lab.open_backend(**small) as docker:
            await all_honest_finish(docker)
        return
    bubblewrap = BubblewrapBackend(lab.settings(**small), lab.new_worker())
    try:
        await bubblewrap.prepare()
    except BackendUnavailable as error:
        require("bubblewrap", False, str(error))
        raise
    await all_honest_finish(bubblewrap)
