"""Law 5: a script finds nothing of the one before it, and the runner is out of its reach."""

from __future__ import annotations

import signal

from continuum.model import Ending
from tests.sandbox.conftest import PIDS, Laboratory

PROCESSES = """
import os
others = set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid())}
print(sorted(open("/proc/%s/cmdline" % pid).read()[:10] for pid in others))
"""


async def processes(laboratory: Laboratory) -> str:
    return await laboratory.printed(PROCESSES)


async def test_no_process_outlives_its_script(laboratory: Laboratory) -> None:
    usual = await processes(laboratory)
    leave = """
import os, signal, time
for kind in ("plain", "double", "session", "ignoring", "stopped", "threads", "group"):
    if os.fork() == 0:
        if kind in ("double", "session") and os.fork():
            os._exit(0)
        if kind == "session":
            os.setsid()
        if kind == "group":
            os.setpgid(0, 0)
        if kind == "ignoring":
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
        if kind == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "threads":
            import threading
            for _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()
        time.sleep(60)
        os._exit(0)
time.sleep(0.1)
"""
    ending = {"": Ending.COMPLETED, "os.kill(os.getpid(), 9)": Ending.FAILED, "time.sleep(60)": Ending.TIMED_OUT}
    for last, expected in ending.items():
        outcome = await laboratory.run(leave + last, timeout=1.0 if "sleep" in last else 20.0)
        # gVisor hangs up a group of processes of which one is stopped as soon as another's parent ends.
        hung_up = laboratory.backend == "runsc" and outcome.exit_code == 128 + signal.SIGHUP
        assert outcome.ending is expected or hung_up, outcome
        assert await processes(laboratory) == usual


async def test_a_fork_bomb_is_bounded_and_cleared_away(laboratory: Laboratory) -> None:
    usual = await processes(laboratory)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    ending = (await laboratory.run(bomb, timeout=0.5)).ending
    if laboratory.backend == "runsc" and ending is Ending.OUT_OF_MEMORY:  # gVisor takes some for each process
        assert await laboratory.usable(unless_gvisor_died=True)
        return
    assert ending is Ending.TIMED_OUT
    assert await processes(laboratory) == usual


async def test_a_script_may_have_as_many_processes_as_allowed(laboratory: Laboratory) -> None:
    count = """
import os, time
children = 0
try:
    while children < 1000:
        if os.fork() == 0: time.sleep(60)
        children += 1
except OSError as error:
    print(children, error.strerror)
"""
    children, reason = (await laboratory.printed(count)).split(" ", 1)
    assert PIDS - 4 <= int(children) <= PIDS
    assert reason == "Resource temporarily unavailable\n"


async def test_no_file_outlives_its_script(laboratory: Laboratory) -> None:
    leave = r"""
import os, socket
for place in (b"/tmp", b"/sandbox", b"/dev/shm", os.getcwdb()):
    os.chdir(place)
    open(b".hidden", "w").close()
    open(b"name \xff\n", "w").close()
    open(b"unreadable", "w").close()
    os.chmod(b"unreadable", 0)
    os.mkfifo(b"fifo")
    socket.socket(socket.AF_UNIX).bind(b"socket")
    os.symlink(b"/etc", b"link")
    os.symlink(b"/proc/self/root", b"-rf")
    os.link(b".hidden", b"hard link")
    for name, mode in ((b"mode 0", 0), (b"sticky", 0o1777), (b"read only", 0o555), (b".d", 0o111)):
        os.makedirs(name + b"/below/below")
        open(name + b"/file", "w").close()
        os.chmod(name + b"/below", mode)
        os.chmod(name, mode)
    os.mkdir(b"many")
    for number in range(1000): open(b"many/%d" % number, "w").close()
    here = os.open(".", os.O_RDONLY)
    for level in range(300):
        os.mkdir(b"d" * 200)
        open("f", "w").close()
        os.chdir(b"d" * 200)
    os.fchdir(here)
    os.chmod(b"d" * 200, 0)
"""
    look = """
import os
for place in ("/tmp", "/sandbox", "/dev/shm", os.getcwd(), "/sandbox/task"):
    print(place, sorted(os.listdir(place)))
"""
    before = await laboratory.printed(look)
    assert before.splitlines() == [
        "/tmp []",
        "/sandbox ['task', 'work']",
        "/dev/shm []",
        "/sandbox/work []",
        "/sandbox/task ['payload.json', 'script.py']",
    ]
    await laboratory.printed(leave)
    assert await laboratory.printed(look) == before


async def test_no_system_v_object_can_be_made(laboratory: Laboratory) -> None:
    """Each would outlive its script. Python's own shared memory and semaphores are files, and go as files do."""
    make = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.shmget(0, 4096, 0o1666), libc.semget(0, 1, 0o1666), libc.msgget(0, 0o1666))
if os.path.isdir("/proc/sysvipc"):
    for kind in ("shm", "sem", "msg"): print(len(list(open("/proc/sysvipc/" + kind))) - 1)
"""
    listed = [] if laboratory.backend == "runsc" else ["0"] * 3
    assert (await laboratory.printed(make)).split() == ["-1"] * 3 + listed


async def test_nothing_of_a_script_is_in_the_memory_of_the_next(laboratory: Laboratory) -> None:
    """Every byte is compared one higher than it is, so that the search is not what it finds."""
    marker = "sUrElY-nOwHeRe-eLsE"
    shifted = bytes(byte + 1 for byte in marker.encode())
    search = f"""
higher = bytes((byte + 1) % 256 for byte in range(256))
found = searched = 0
with open("/proc/self/maps") as file:
    places = [line.split() for line in file]
with open("/proc/self/mem", "rb", 0) as memory:
    for place in places:
        if place[1].startswith("rw"):
            start, end = (int(number, 16) for number in place[0].split("-"))
            memory.seek(start)
            content = memory.read(end - start)
            searched += len(content)
            found += content.translate(higher).count({shifted!r})
print(found > 0, searched > 1000000)
"""
    assert await laboratory.printed(search, payload=f'"{marker}"') == "True True\n", "the search finds what is there"
    assert await laboratory.printed(search) == "False True\n", "nothing of a payload"
    say = f"import sys; text = bytes(byte - 1 for byte in {shifted!r}).decode(); print(text); print(text, file=sys.stderr)"
    assert (await laboratory.run(say)).output == marker + "\n"
    assert await laboratory.printed(search) == "False True\n", "nothing of an output"
    await laboratory.run(f"x = {marker!r}", environment={"MARKER": marker})
    assert await laboratory.printed(search) == "False True\n", "nothing of code or environment"
    names = f"""
import os, socket, sys
name = bytes(byte - 1 for byte in {shifted!r}).decode()
for place in ("/sandbox", "/tmp", "/dev/shm"):
    for number in range(20): open("%s/%d-%s" % (place, number, name * 9), "w").close()
if {laboratory.backend != "runsc"}:  # gVisor leaves them in flight, and the sandbox is given up
    left, right = socket.socketpair()
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("\\0" + name)
    socket.send_fds(left, [b"x"], [left.fileno(), right.fileno(), bound.fileno()])
"""
    await laboratory.printed(names)
    assert await laboratory.printed(search) == "False True\n", "nothing of the names of files and sockets"


async def test_the_runner_is_out_of_a_scripts_reach(laboratory: Laboratory) -> None:
    attempts = """
import ctypes, os, signal
runner = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206

def attempt(name, action):
    try:
        print(name, "done", action())
    except OSError:
        print(name, "refused")

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result

def read_memory():
    local = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(local), 8)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(local), 8)
    return checked(libc.process_vm_readv(runner, vector, 1, remote, 1, 0))

for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGCHLD):
    attempt("kill", lambda: os.kill(runner, number))
attempt("attach", lambda: checked(libc.ptrace(PTRACE_ATTACH, runner, 0, 0)))
attempt("seize", lambda: checked(libc.ptrace(PTRACE_SEIZE, runner, 0, 0)))
attempt("vm_readv", read_memory)
attempt("limits", lambda: checked(libc.prlimit(runner, 7, (ctypes.c_ulong * 2)(1, 1), 0)))
for pid in {1, runner}:
    for name in ("mem", "environ", "maps", "fd", "fd/0", "fd/1", "fd/3", "root", "cwd", "exe", "auxv", "syscall", "stack"):
        path = "/proc/%d/%s" % (pid, name)
        attempt(path, lambda: os.listdir(path) if os.path.isdir(path) or name == "fd" else open(path, "rb").read(1))
    for name in ("oom_score_adj", "comm", "fd/0", "fd/1", "fd/3", "mem", "clear_refs"):
        path = "/proc/%d/%s" % (pid, name)
        attempt(path + ",w", lambda: open(path, "r+b", 0))
attempt("setuid", lambda: os.setuid(0))
attempt("setresuid", lambda: os.setresuid(0, 0, 0))
attempt("setgid", lambda: os.setgid(0))
attempt("chroot", lambda: os.chroot("/"))
attempt("mount", lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
"""
    said = await laboratory.printed(attempts)
    assert len(said.splitlines()) > 30
    done = {line.split()[0] for line in said.splitlines() if not line.endswith("refused")}
    # gVisor guards what a process holds, and shows what it was started with to all: nothing that is secret. 0 is /dev/null.
    shown = (
        {f"/proc/1/{name}" for name in ("environ", "maps", "auxv", "fd", "fd/0", "fd/0,w")}
        if laboratory.backend == "runsc"
        else set()
    )
    assert done == shown
    assert await laboratory.usable()


async def test_a_script_cannot_hold_its_user_down_for_the_next(laboratory: Laboratory) -> None:
    """Limits, umask, priorities and keys are the process's own, and are gone with it."""
    change = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
os.umask(0o777)
os.nice(19)
"""
    look = "import os, resource; print(resource.getrlimit(7), resource.getrlimit(1), os.umask(0), os.nice(0))"
    before = await laboratory.printed(look)
    await laboratory.run(change)
    assert await laboratory.printed(look) == before


async def test_no_message_queue_and_no_key_outlives_its_script(laboratory: Laboratory) -> None:
    """Neither has a place in the file system, and both belong to the user, not to a process."""
    numbers = "import ctypes, platform\nlibc = ctypes.CDLL(None)\narm = platform.machine() == 'aarch64'\n"
    leave = numbers + (
        "libc.mq_open(b'/left', 0o102, 0o666, None)\n"
        "for ring in (-2, -3, -4, -5): libc.syscall(217 if arm else 248, b'user', b'left', b'secret', 6, ring)\n"
    )
    look = numbers + (
        "print(libc.mq_open(b'/left', 0) < 0)\n"
        "for ring in (-2, -3, -4, -5): print(libc.syscall(219 if arm else 250, 10, ring, b'user', b'left', 0) < 0)\n"
    )
    await laboratory.run(leave)
    assert (await laboratory.printed(look)).split() == ["True"] * 5
