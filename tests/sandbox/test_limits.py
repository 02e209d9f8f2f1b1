"""Each limit is in force, is told as itself, and leaves the sandbox fit for the next script."""

from __future__ import annotations

import pytest
import trio

from continuum.model import Ending, Outcome
from tests.sandbox.conftest import DISK_MB, PIDS, Laboratory, open_laboratory, whatever_the_kernel

PLACES = {"/sandbox/work": "/sandbox", "/tmp": "/tmp", "/dev/shm": "/dev/shm"}
"""Where a script writes, and which place that is a part of."""


def first_line(outcome: Outcome) -> str:
    return outcome.message.splitlines()[0]


def held(laboratory: Laboratory) -> str:
    files = f" and {DISK_MB * 256} files" if laboratory.backend == "docker" else ""
    return f"at most {DISK_MB} MB{files}"


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["while True: pass", "import os\nos.fork()\nwhile True: pass"])
async def test_cpu_time_is_told_from_time(backend_name: str, code: str) -> None:
    async with open_laboratory(backend_name, task_cpu_seconds=1) as laboratory:
        with trio.fail_after(15):
            outcome = await laboratory.run(code, timeout=20.0)
        assert (outcome.ending, outcome.message) == (Ending.TIMED_OUT, "CPU time: used more than 1 s")
        outcome = await laboratory.run("import time; time.sleep(1.5)")
        assert outcome.ending is Ending.COMPLETED, "waiting takes none"
        assert (await laboratory.run("while True: pass", timeout=0.3)).message == "Timeout: ran longer than 0.3 s"


@pytest.mark.parametrize("backend_name", ["docker"])
async def test_cpu_time_is_that_of_all_processes_together(backend_name: str) -> None:
    """Of children, too, that nobody waits for, and of many that each use little."""
    code = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end: pass
        os._exit(0)
    time.sleep(0.02)
"""
    async with open_laboratory(backend_name, task_cpu_seconds=1) as laboratory:
        outcome = await laboratory.run(code, timeout=20.0)
        assert (outcome.ending, outcome.message) == (Ending.TIMED_OUT, "CPU time: used more than 1 s")
        assert await laboratory.usable()


@pytest.mark.parametrize("backend_name", ["docker"])
async def test_a_sandbox_uses_no_more_cpu_than_its_share(backend_name: str) -> None:
    code = """
import os, time
for _ in range(3): os.fork()
began, end = time.process_time(), time.monotonic() + 1
while time.monotonic() < end: pass
print(time.process_time() - began)
time.sleep(1)
"""
    async with open_laboratory(backend_name, container_cpu_limit=0.25) as laboratory:
        used = sum(map(float, (await laboratory.run(code)).output.split()))
        assert 0 < used < 0.25 * 3, "of one second, on however many processors"


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_a_script_whose_child_was_killed_for_memory_is_told_so(laboratory: Laboratory) -> None:
    hog = "block = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): block[i] = 1"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hog!r}], check=True)"
    outcome = await laboratory.run(code)
    if laboratory.backend == "bubblewrap":  # by process: the child is refused the memory, and tells of it
        assert outcome.ending is Ending.FAILED
        assert "MemoryError" in outcome.error_output
    else:
        assert outcome.ending is Ending.OUT_OF_MEMORY
        told = "" if laboratory.backend == "runsc" else " (subprocess.Called"
        assert first_line(outcome).startswith(f"Out of memory: used more than {laboratory.memory_mb} MB{told}")
    assert await laboratory.usable(unless_gvisor_died=True)


@pytest.mark.parametrize("backend_name", ["bubblewrap", "docker"])  # on gVisor the sandbox ends with the child
async def test_a_script_that_copes_with_the_death_of_its_child_completes(laboratory: Laboratory) -> None:
    hog = "block = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): block[i] = 1"
    code = f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {hog!r}]).returncode)"
    outcome = await laboratory.run(code)
    assert (outcome.ending, outcome.output) == (Ending.COMPLETED, "-9\n" if laboratory.backend == "docker" else "1\n")


async def test_a_request_that_takes_more_memory_to_read_than_there_is_ends_soon_and_says_why(backend_name: str) -> None:
    memory = {"bubblewrap": 64, "docker": 64, "runsc": 256}[backend_name]  # gVisor has a larger one of its own
    async with open_laboratory(backend_name, container_memory_mb=memory, container_disk_mb=memory) as laboratory:
        with trio.fail_after(15):
            outcome = await laboratory.run("print('ran')", payload=f'"{"a" * (memory * 15 << 16)}"', timeout=60.0)
        assert (outcome.ending, outcome.output) == (Ending.OUT_OF_MEMORY, "")
        assert first_line(outcome).startswith(f"Out of memory: used more than {memory} MB")


@pytest.mark.parametrize("backend_name", ["bubblewrap", "docker"])
async def test_a_kill_is_not_taken_for_a_lack_of_memory(laboratory: Laboratory) -> None:
    await laboratory.run("block = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): block[i] = 1")
    outcome = await laboratory.run("import os; os.kill(os.getpid(), 9)")
    assert (outcome.ending, outcome.message) == (Ending.FAILED, "Killed by signal 9 (SIGKILL)")


@pytest.mark.parametrize("backend_name", ["docker"])
async def test_no_memory_is_swapped_out_of_the_limit(laboratory: Laboratory) -> None:
    code = """
import mmap
blocks = []
while len(blocks) < 64:
    blocks.append(mmap.mmap(-1, 8 << 20))
    for i in range(0, 8 << 20, 4096): blocks[-1][i] = 1
    print(8 * len(blocks), flush=True)
"""
    outcome = await laboratory.run(code)
    assert outcome.ending is Ending.OUT_OF_MEMORY
    assert int(outcome.output.split()[-1]) <= laboratory.memory_mb


async def test_what_is_in_the_places_counts_and_is_told_as_memory_where_it_is(backend_name: str) -> None:
    """Three places of 64 MB each do not fit into 128 MB of a container."""
    code = """
for place in ("/tmp", "/dev/shm", "/sandbox/work"):
    with open(place + "/large", "wb") as file:
        for _ in range(63): file.write(bytes(1 << 20))
print("whole")
"""
    async with open_laboratory(backend_name, container_disk_mb=64, container_memory_mb=128) as laboratory:
        outcome = await laboratory.run(code)
        expected = Ending.COMPLETED if backend_name == "bubblewrap" else Ending.OUT_OF_MEMORY
        assert outcome.ending is expected, outcome.message


# -- processes, files, disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "import subprocess\nkeep = []\nwhile True: keep.append(subprocess.Popen(['sleep', '60']))",
    ],
)
async def test_a_script_that_fails_for_want_of_processes_is_told_the_limit(laboratory: Laboratory, code: str) -> None:
    if "thread" in code:
        code = f"import threading\nthreading.stack_size(65536)\n{code}"
    outcome = await laboratory.run(code)
    assert outcome.ending is Ending.FAILED
    few = "Too many processes" if laboratory.backend == "docker" else "Perhaps too many processes"
    assert first_line(outcome).startswith(f"{few}: at most {PIDS}, threads included ("), outcome.message
    assert await laboratory.usable()


@pytest.mark.parametrize("backend_name", ["docker"])
async def test_a_socket_that_would_block_is_not_taken_for_a_lack_of_processes(laboratory: Laboratory) -> None:
    code = "import socket\nleft, right = socket.socketpair()\nleft.recv(1, socket.MSG_DONTWAIT)"
    outcome = await laboratory.run(code)
    assert first_line(outcome) == "BlockingIOError: [Errno 11] Resource temporarily unavailable"


async def test_open_files_are_limited_and_told(laboratory: Laboratory) -> None:
    outcome = await laboratory.run("import os\nwhile True: os.dup(1)")
    expected = "Too many open files: a process may have 1024 (OSError: [Errno 24] Too many open files)"
    assert (outcome.ending, first_line(outcome)) == (Ending.FAILED, expected)
    raised = await laboratory.run("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))")
    assert raised.ending is Ending.FAILED


@pytest.mark.parametrize("path", PLACES)
async def test_a_full_place_is_told_by_its_name(laboratory: Laboratory, path: str) -> None:
    outcome = await laboratory.run(f"file = open('{path}/large', 'wb')\nwhile True: file.write(bytes(1 << 20))")
    expected = f"Disk full: {PLACES[path]} holds {held(laboratory)} (OSError: [Errno 28] No space left on device)"
    assert (outcome.ending, first_line(outcome)) == (Ending.FAILED, expected)
    assert await laboratory.usable()


@whatever_the_kernel
async def test_a_full_place_that_was_emptied_again_is_told_too(laboratory: Laboratory) -> None:
    code = "import tempfile\nwith tempfile.TemporaryFile() as file:\n    while True: file.write(bytes(1 << 20))"
    outcome = await laboratory.run(code)
    assert first_line(outcome).startswith(f"Disk full: each writable place holds {held(laboratory)} (OSError: ")


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("backend_name", ["docker"])
async def test_the_number_of_files_is_limited_and_told(laboratory: Laboratory, path: str) -> None:
    code = f"number = 0\nwhile True:\n    open('{path}/%d' % number, 'w').close()\n    number += 1"
    outcome = await laboratory.run(code)
    assert outcome.ending is Ending.FAILED
    assert first_line(outcome).startswith(f"Disk full: {PLACES[path]} holds {held(laboratory)} (OSError: [Errno 28]")
    assert await laboratory.usable()


async def test_shared_memory_beyond_its_size_is_told_as_a_full_place(laboratory: Laboratory) -> None:
    # As multiprocessing.shared_memory does it, but for the process of Python's that removes the file after the script's death.
    code = f"""
import mmap
file = open("/dev/shm/block", "wb+")
file.truncate({DISK_MB + 4} << 20)
block = mmap.mmap(file.fileno(), 0)
for i in range(0, len(block), 4096): block[i] = 1
"""
    outcome = await laboratory.run(code)
    expected = f"Disk full: /dev/shm holds {held(laboratory)} (killed by signal 7, SIGBUS)"
    assert (outcome.ending, first_line(outcome)) == (Ending.FAILED, expected)
    assert await laboratory.usable()


async def test_a_file_that_pretends_to_be_huge_takes_no_room(laboratory: Laboratory) -> None:
    code = """
import os
for place in ("/tmp", "/dev/shm", "."):
    os.truncate(os.open(place + "/huge", os.O_CREAT | os.O_RDWR), 1 << 40)
"""
    assert (await laboratory.run(code)).ending is Ending.COMPLETED
    assert await laboratory.usable()


# -- what the kernel keeps ---------------------------------------------------------------------------------------------


@whatever_the_kernel
async def test_no_core_is_dumped(laboratory: Laboratory) -> None:
    code = (
        "import os, subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'import os; os.abort()']).returncode)"
    )
    look = "\nprint(os.listdir('.'), os.listdir('/tmp'))"
    assert (await laboratory.printed(code + look)) == "-6\n[] []\n"


async def test_no_message_queue_is_made_by_either_way(laboratory: Laboratory) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mq_open(b"/left", 0o102, 0o600, None))
try:
    os.open("/dev/mqueue/left", os.O_CREAT | os.O_RDWR)
except OSError:
    print("refused")
"""
    assert (await laboratory.printed(code)).split() == ["-1", "refused"]


async def test_a_flood_of_output_does_not_stall_the_worker(laboratory: Laboratory) -> None:
    """While it lasts, the worker's own loop turns as if nothing were."""
    code = "import os\nblock = b'x' * 65536\nwhile True: os.write(1, block); os.write(2, block)"
    turns = 0
    async with trio.open_nursery() as nursery:

        async def turn() -> None:
            nonlocal turns
            while True:
                await trio.sleep(0.01)
                turns += 1

        nursery.start_soon(turn)
        outcome = await laboratory.run(code, timeout=2.0, output_limit=1 << 20)
        nursery.cancel_scope.cancel()
    assert outcome.ending is Ending.TIMED_OUT
    assert len(outcome.output) < (1 << 20) + 100
    assert turns > 50, "of 200 on a machine with nothing else to do"
    assert await laboratory.usable()
