"""Scripts that turn on their runner, race its cleaning, or leave what is hard to find: each attack is really made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from continuum.model import Ending
from continuum.sandbox.bubblewrap import BubblewrapBackend
from continuum.sandbox.protocol import BackendUnavailable, SandboxLost
from tests.conftest import require
from tests.sandbox.conftest import DISK_MB, Laboratory, open_laboratory, whatever_the_kernel
from tests.support import docker as lab

OTHERS = """
import os
print(len(set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid())}))
"""
LOOK = """
import os
for place in ("/tmp", "/dev/shm", "/sandbox"):
    state = os.statvfs(place)
    print(place, sorted(os.listdir(place)), state.f_files - state.f_ffree, state.f_blocks - state.f_bfree)
"""


@asynccontextmanager
async def open_plain_bubblewrap() -> AsyncIterator[Laboratory]:
    """A sandbox as a worker without root makes it: its scripts run as the runner's own user."""
    backend = BubblewrapBackend(lab.settings(container_disk_mb=DISK_MB), lab.new_worker())
    backend._as_root = False
    try:
        sandbox = await backend.start()
    except BackendUnavailable as error:
        require("bubblewrap", False, str(error))
        raise
    try:
        yield Laboratory("bubblewrap", sandbox)
    finally:
        await sandbox.aclose()


@pytest.fixture
async def plain_bubblewrap() -> AsyncIterator[Laboratory]:
    async with open_plain_bubblewrap() as laboratory:
        yield laboratory


# -- processes that will not go ----------------------------------------------------------------------------------------


async def test_no_chain_of_forks_is_faster_than_the_kill(laboratory: Laboratory) -> None:
    """Each process of a chain forks the next and ends; some in new sessions, some deaf to signals."""
    usual = await laboratory.printed(OTHERS)
    code = """
import os, signal, sys, time
for chain in range(3):
    if os.fork() == 0:
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True:
            if chain % 2: os.setsid() if os.getsid(0) != os.getpid() else None
            try:
                if os.fork(): os._exit(0)
            except OSError: pass
time.sleep(0.3)
"""
    for _ in range(3):
        assert (await laboratory.run(code)).ending is Ending.COMPLETED
        assert await laboratory.printed(OTHERS) == usual


async def test_a_flood_of_orphans_does_not_keep_the_runner_from_the_time(laboratory: Laboratory) -> None:
    code = """
import os, signal
for _ in range(4):
    try: os.fork()
    except OSError: pass
while True:
    try:
        if os.fork() == 0:
            os.fork()
            os._exit(0)
        os.waitpid(-1, os.WNOHANG)
    except OSError: pass
"""
    outcome = await laboratory.run(code, timeout=1.0)
    assert outcome.ending is Ending.TIMED_OUT, "and no sandbox lost: the runner ended it by itself, in time"
    assert await laboratory.usable()


async def test_a_script_that_ends_is_not_waited_for_because_its_children_hold_its_outputs(
    laboratory: Laboratory,
) -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('done')"
    with trio.fail_after(10):
        assert await laboratory.printed(code) == "done\n"


# -- against the runner ------------------------------------------------------------------------------------------------

SIGNALS = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
runner = os.getppid()
for number in range(1, 65):
    for target in (runner, -runner):
        try: os.kill(target, number)
        except OSError: pass
    libc.tgkill(runner, runner, number)
    libc.sigqueue(runner, number, 0)
"""


async def test_no_signal_moves_the_runner(laboratory: Laboratory) -> None:
    assert (await laboratory.run(SIGNALS + "print('on')")).output == "on\n"
    assert await laboratory.usable()


async def test_no_signal_moves_a_runner_of_the_same_user(plain_bubblewrap: Laboratory) -> None:
    assert (await plain_bubblewrap.run(SIGNALS + "print('on')")).output == "on\n"
    assert await plain_bubblewrap.usable()


async def test_a_script_of_the_runners_own_user_cannot_change_what_the_next_inherits(
    plain_bubblewrap: Laboratory,
) -> None:
    change = """
import os, resource
runner = os.getppid()
def attempt(action, *arguments):
    try: print("done", action(*arguments))
    except OSError: print("refused")
for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_STACK):
    attempt(resource.prlimit, runner, limit, (20, 20))
attempt(os.setpriority, os.PRIO_PROCESS, runner, 19)
attempt(os.setpriority, os.PRIO_PGRP, runner, 19)
attempt(os.setpriority, os.PRIO_USER, 0, 19)
attempt(os.sched_setaffinity, runner, {0})
attempt(os.sched_setscheduler, runner, os.SCHED_IDLE, os.sched_param(0))
for name in ("mem", "environ", "fd/0", "fd/1"):
    attempt(open, "/proc/%d/%s" % (runner, name), "r+b", 0)
"""
    said = await plain_bubblewrap.printed(change)
    assert len(said.splitlines()) > 12
    assert set(said.split()) == {"refused"}
    look = "import os, resource; print(*map(resource.getrlimit, range(16)), os.nice(0), os.sched_getscheduler(0))"
    assert await plain_bubblewrap.printed(look) == await plain_bubblewrap.printed(look)
    assert "(20, 20)" not in await plain_bubblewrap.printed(look)


@pytest.mark.parametrize("kind", ["plain", "root"])
async def test_a_bubblewrap_script_writes_to_the_emptied_places_alone(kind: str) -> None:
    find = """
import os
found = set()
for top, directories, _ in os.walk("/"):
    directories[:] = [name for name in directories if os.path.join(top, name) not in ("/proc", "/usr")]
    try:
        open(top + "/left", "w").close()
        found.add(top)
    except OSError: pass
print(*sorted(found))
"""
    places = "/dev/shm /sandbox /sandbox/task /sandbox/work /tmp\n"
    async with open_laboratory("bubblewrap") if kind == "root" else open_plain_bubblewrap() as laboratory:
        assert await laboratory.printed(find) == places


async def test_a_script_that_owns_the_places_cannot_change_them_for_the_next(plain_bubblewrap: Laboratory) -> None:
    change = """
import os, shutil
shutil.rmtree("/sandbox/work"); shutil.rmtree("/sandbox/task")
for place in ("/sandbox", "/tmp", "/dev/shm"):
    os.utime(place, (4, 242424)); os.chmod(place, 0o500)
"""
    look = """
import os
for place in ("/sandbox", "/tmp", "/dev/shm"): print(oct(os.stat(place).st_mode), os.stat(place).st_atime > 4)
"""
    before = await plain_bubblewrap.printed(look)
    assert await plain_bubblewrap.printed(change) == ""
    assert await plain_bubblewrap.printed(look) == before


async def test_no_trick_with_its_outputs_harms_the_runner(laboratory: Laboratory) -> None:
    code = """
import fcntl, os, signal, stat
runner = os.getppid()
for descriptor in (1, 2):
    for command, value in ((fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC | os.O_APPEND), (fcntl.F_SETOWN, runner), (10, 9),
                           (1031, 4096), (1031, 1 << 20), (1024, 0)):
        try: fcntl.fcntl(descriptor, command, value)
        except OSError: pass
    for mode in (0, 0o777):
        try: os.fchmod(descriptor, mode)
        except OSError: pass
    try:
        again = os.open("/proc/self/fd/%d" % descriptor, os.O_RDONLY | os.O_NONBLOCK)
        os.read(again, 1)
    except OSError: pass
for _ in range(1000):  # the pipe is full long before, unless its reader keeps up
    try: os.write(1, b"x" * 4096)
    except BlockingIOError: break
"""
    outcome = await laboratory.run(code)
    assert outcome.ending is Ending.COMPLETED, outcome
    assert await laboratory.usable()


async def test_a_script_that_hides_from_the_kernels_choice_gains_nothing(backend_name: str) -> None:
    """It asks to be spared when memory runs out, and spreads over many processes smaller than the runner."""
    code = """
import os, time
for value in (-1000, -1, 0):
    try: open("/proc/self/oom_score_adj", "w").write(str(value))
    except OSError: pass
print(open("/proc/self/oom_score_adj").read(), flush=True)
for place in ("/dev/shm/a", "/tmp/a", "/sandbox/work/a"):
    file = open(place, "wb")
    try:
        while True: file.write(bytes(1 << 16))
    except OSError: pass
for _ in range(30):
    if os.fork() == 0:
        block = bytearray(5 << 20)
        for i in range(0, len(block), 4096): block[i] = 1
        time.sleep(60)
time.sleep(3)
raise SystemExit("survived")
"""
    async with open_laboratory(backend_name, container_disk_mb=32, container_memory_mb=128) as laboratory:
        if backend_name == "bubblewrap":
            assert (await laboratory.run(code)).ending is Ending.FAILED, "no limit by group"
            assert await laboratory.usable()
            return
        if backend_name == "runsc":
            assert (await laboratory.run(code)).ending is Ending.OUT_OF_MEMORY
            assert await laboratory.usable(unless_gvisor_died=True)
            return
        try:
            outcome = await laboratory.run(code)
        except SandboxLost as lost:
            assert "memory" in str(lost)  # noqa: PT017
        else:
            assert outcome.output == "500\n"
            assert outcome.ending is Ending.OUT_OF_MEMORY
            assert await laboratory.usable()


# -- against the cleaning ----------------------------------------------------------------------------------------------


async def test_processes_that_go_on_writing_leave_nothing(laboratory: Laboratory) -> None:
    before = await laboratory.printed(LOOK)
    code = """
import os, time
for number in range(6):
    if os.fork() == 0:
        os.setsid()
        step = 0
        while True:
            for place in ("/tmp", "/dev/shm", "/sandbox"):
                try:
                    os.mkdir("%s/%d-%d" % (place, number, step))
                    open("%s/%d-%d/file" % (place, number, step), "w").write("x" * 5000)
                except OSError: pass
            step += 1
time.sleep(0.3)
"""
    for _ in range(3):
        await laboratory.run(code)
        assert await laboratory.printed(LOOK) == before


@pytest.mark.parametrize("shape", ["wide", "deep", "bushy"])
@whatever_the_kernel
async def test_a_tree_of_any_shape_is_removed_in_little_time(laboratory: Laboratory, shape: str) -> None:
    before = await laboratory.printed(LOOK)
    code = {
        "wide": "for n in range(4000): os.mkdir('/tmp/%d' % n)",
        "deep": "os.chdir('/tmp')\nfor n in range(4000):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)",
        "bushy": """
for n in range(50):
    os.mkdir('/dev/shm/%d' % n)
    for m in range(75):
        os.mkdir('/dev/shm/%d/%d' % (n, m), 0o111)
""",
    }[shape]
    assert (await laboratory.run("import os\n" + code)).ending is Ending.COMPLETED
    began = trio.current_time()
    assert await laboratory.printed(LOOK) == before
    assert trio.current_time() - began < 3


async def test_what_is_put_in_the_place_of_a_scripts_directories_is_removed(laboratory: Laboratory) -> None:
    before = await laboratory.printed(LOOK)
    places = ("task", "work")
    attacks = {
        "link": "os.symlink('/tmp', path)",
        "loop": "os.symlink(path, path)",
        "file": "open(path, 'w').close(); os.chmod(path, 0)",
        "fifo": "os.mkfifo(path)",
        "socket": "import socket; socket.socket(socket.AF_UNIX).bind(path)",
        "directory": "os.makedirs(path + '/script.py/payload.json'); os.chmod(path, 0)",
    }
    for make in attacks.values():
        code = f"import os\nfor name in {places}:\n    path = '/sandbox/' + name\n    os.rename(path, path + '2')\n    {make}"
        assert (await laboratory.run(code)).ending is Ending.COMPLETED
        assert await laboratory.printed(LOOK) == before


@pytest.mark.parametrize("backend_name", ["bubblewrap", "docker"])  # gVisor has no files that never had a name
async def test_a_file_without_a_name_that_nothing_can_reach_any_more_takes_no_room_from_the_next(
    laboratory: Laboratory,
) -> None:
    """Held by sockets that are in flight through each other: closed only when the kernel collects its garbage."""
    before = await laboratory.printed(LOOK)
    code = f"""
import os, socket
for place in ("/tmp", "/dev/shm", "/sandbox"):
    file = os.open(place, os.O_TMPFILE | os.O_RDWR)
    os.write(file, bytes({DISK_MB - 2} << 20))
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [left.fileno(), right.fileno(), file])
    socket.send_fds(right, [b"x"], [left.fileno(), right.fileno(), file])
name = socket.socket(socket.AF_UNIX)
name.bind("\\0abstract")
left, right = socket.socketpair()
socket.send_fds(left, [b"x"], [left.fileno(), right.fileno(), name.fileno()])
os._exit(0)
"""
    for _ in range(3):
        assert (await laboratory.run(code)).ending is Ending.COMPLETED, "the name is free again, too"
        assert await laboratory.printed(LOOK) == before


async def test_locks_leases_and_attributes_end_with_their_script(laboratory: Laboratory) -> None:
    before = await laboratory.printed(LOOK)
    code = """
import ctypes, fcntl, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in ("/etc/passwd", os.path.realpath(sys.executable), "/", "/tmp", "/dev/shm"):
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
for place in ("/tmp", "/dev/shm", "/sandbox"):
    for attempt in (
        lambda: os.setxattr(place, "user.left", b"x"),
        lambda: os.setxattr(place, "system.posix_acl_access", b"\\2\\0\\0\\0"),
        lambda: os.chmod(place, 0o777),
        lambda: os.chown(place, os.getuid(), -1),
        lambda: os.utime(place, (1, 1)),
        lambda: fcntl.ioctl(os.open(place, os.O_RDONLY), 0x40086602, b"\\x40" + bytes(7)),
        lambda: os.rename(place, place + "2"),
        lambda: os.rmdir(place),
    ):
        try: print(place, "done", attempt())
        except OSError: pass
    path = place + "/own"
    os.mkdir(path)
    for attempt in (
        lambda: os.setxattr(path, "user.own", b"x" * 1000),
        lambda: fcntl.ioctl(os.open(path, os.O_RDONLY), 0x40086602, b"\\x10" + bytes(7)),
        lambda: fcntl.ioctl(os.open(path, os.O_RDONLY), 0x40086602, b"\\x20" + bytes(7)),
    ):
        try: attempt()
        except OSError: pass
    file = os.open(path + "/leased", os.O_CREAT | os.O_RDONLY)
    try: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError: pass  # gVisor knows no leases
    libc.inotify_add_watch(libc.inotify_init1(0), place.encode(), 0xFFF)
os.fork() or __import__("time").sleep(60)
"""
    for _ in range(2):
        assert await laboratory.printed(code) == "", "nothing of the places themselves, and every lock at once"
        assert await laboratory.printed(LOOK) == before
