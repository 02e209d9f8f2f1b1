"""What a script may ask of the kernel: every refused call is really made, in a sandbox of every backend.

Much of it the kernel would refuse by itself, or Docker's own filter would. So each probe is also made under a filter whose
errors are numbers that nobody else gives: that tells who refuses.
"""

from __future__ import annotations

import json
import os
import struct

import pytest

from continuum.sandbox import seccomp
from continuum.sandbox.syscall_numbers import NEWEST, NUMBERS, UNUSED
from tests.sandbox.conftest import Laboratory, open_laboratory, whatever_the_kernel

EPERM, ENOSYS, EPROTONOSUPPORT, ESOCKTNOSUPPORT, EAFNOSUPPORT = 1, 38, 93, 94, 97
MARK = 2000
"""Added to an error so that nobody else gives it. The kernel passes errors up to 4095."""

COLUMN = seccomp.MACHINES.index(os.uname().machine)
SELF, SOMEWHERE, EVERYTHING = 0, "pointer", -1
FORK = 17
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x40000000, 0x20000
RAW_PACKET, STREAM, DATAGRAM = 3, 1, 2

Call = tuple[str, tuple[int | str, ...], int]
"""A call's name, its arguments and the error it must give."""

NEVER: list[Call] = [
    (name, (EVERYTHING,) * 6, EPERM if fragment == seccomp.REFUSED else ENOSYS)
    for name, fragment in seccomp.NEVER.items()
    if NUMBERS[name][COLUMN] is not None
]
BY_ARGUMENT: list[Call] = [
    *(("clone", (FORK | flag, 0, 0, 0, 0), EPERM) for flag in (CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS)),
    ("personality", (0x0040000,), EPERM),
    ("personality", (0x0400000,), EPERM),
    *(("ioctl", (0, command, SOMEWHERE), EPERM) for command in (0x5412, 0x541C, 0x5423)),
    # The key ring's AF_KEY, AF_PACKET, AF_CAN, AF_TIPC, AF_BLUETOOTH, AF_ALG, AF_VSOCK, AF_XDP, AF_RDS and AF_SMC.
    *(("socket", (family, RAW_PACKET, 0), EAFNOSUPPORT) for family in (15, 17, 29, 30, 31, 38, 40, 44, 21, 43)),
    *(("socket", (16, RAW_PACKET, protocol), EPROTONOSUPPORT) for protocol in (4, 6, 9, 12, 15, 16, 21)),
    *(("socket", (family, RAW_PACKET, 1), EPERM) for family in (2, 10)),
    *(("socket", (2, STREAM, protocol), EPROTONOSUPPORT) for protocol in (132, 256, 262)),
    ("socket", (2, DATAGRAM, 136), EPROTONOSUPPORT),
    ("socket", (2, 6, 33), ESOCKTNOSUPPORT),
    ("socketpair", (30, STREAM, 0, SOMEWHERE), EAFNOSUPPORT),
    ("prlimit64", (1, 7, SOMEWHERE, 0), EPERM),
    ("setpriority", (0, 1, 19), EPERM),
    ("setpriority", (2, 0, 19), EPERM),
    ("ioprio_set", (1, 1, 0), EPERM),
    ("ioprio_set", (3, 0, 0), EPERM),
    *((name, (1, 8, SOMEWHERE), EPERM) for name in ("sched_setaffinity", "sched_setscheduler", "sched_setattr")),
    ("sched_setparam", (1, SOMEWHERE), EPERM),
]
CALLS = NEVER + BY_ARGUMENT
LATER = [*range(NEWEST + 1, NEWEST + 20), *(last for _, last in UNUSED[COLUMN]), 500, 1000]

PROBE = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = []
for number, arguments in json.loads(payload):
    block = ctypes.create_string_buffer(256)
    values = [ctypes.addressof(block) if value == "pointer" else value for value in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, values))
    if result == 0 and number == %d:
        os._exit(0)  # the child that should not be
    answers.append(ctypes.get_errno() if result == -1 else None)
print(json.dumps(answers))
"""


async def probe(laboratory: Laboratory, calls: list[Call]) -> dict[tuple[str, tuple[int | str, ...]], int | None]:
    """The error that each call gives to a script; None for none."""
    numbers = [(NUMBERS[name][COLUMN], arguments) for name, arguments, _ in calls]
    said = await laboratory.printed(PROBE % (NUMBERS["clone"][COLUMN] or 0), payload=json.dumps(numbers))
    return {(name, arguments): error for (name, arguments, _), error in zip(calls, json.loads(said), strict=True)}


def marked() -> bytes:
    """The program with errors that nobody else gives."""
    return b"".join(
        struct.pack("<HBBI", code, if_true, if_false, value + MARK if (code, value >> 16) == (0x06, 5) else value)
        for code, if_true, if_false, value in struct.iter_unpack("<HBBI", seccomp.program())
    )


def everything_allowed() -> bytes:
    return seccomp._encode(seccomp.ALLOW)


async def test_no_script_can_make_a_call_that_none_may_make(laboratory: Laboratory) -> None:
    assert len(CALLS) > 110
    got = await probe(laboratory, CALLS)
    assert got == {(name, arguments): error for name, arguments, error in CALLS}
    assert await laboratory.usable()


async def test_it_is_the_runners_filter_that_refuses(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = marked()
    monkeypatch.setattr(seccomp, "program", lambda: program)
    async with open_laboratory(backend_name) as laboratory:
        got = await probe(laboratory, CALLS)
    assert got == {(name, arguments): error + MARK for name, arguments, error in CALLS}


@pytest.mark.parametrize("backend_name", ["bubblewrap"])
async def test_without_the_filter_the_same_probes_reach_the_kernel(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = everything_allowed()
    monkeypatch.setattr(seccomp, "program", lambda: program)
    make: list[Call] = [
        ("add_key", (SOMEWHERE, SOMEWHERE, SOMEWHERE, 1, -3), ENOSYS),
        ("shmget", (0, 4096, 0o1666), ENOSYS),
        ("semget", (0, 1, 0o1666), ENOSYS),
        ("msgget", (0, 0o1666), ENOSYS),
        ("io_uring_setup", (1, SOMEWHERE), ENOSYS),
        ("unshare", (CLONE_NEWUSER,), EPERM),
    ]
    async with open_laboratory(backend_name) as laboratory:
        got = await probe(laboratory, CALLS)
        made = await probe(laboratory, make)
    reached = {call for call, error in got.items() if error not in (EPERM, ENOSYS)}
    assert len(reached) > len(CALLS) / 2, "the kernel answers for itself"
    others = {(name, arguments) for name, arguments, error in CALLS if got[name, arguments] != error}
    assert len(others) > len(CALLS) / 2
    succeeded = [name for (name, _), error in made.items() if error is None]
    assert {"shmget", "semget", "msgget", "unshare"} <= set(succeeded), made


async def test_what_later_kernels_add_is_not_there(laboratory: Laboratory) -> None:
    script = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
print(json.dumps([ctypes.get_errno() if libc.syscall(n, -1, -1, -1, -1, -1, -1) < 0 else 0 for n in json.loads(payload)]))
"""
    said = json.loads(await laboratory.printed(script, payload=json.dumps(LATER)))
    assert dict(zip(LATER, said, strict=True)) == dict.fromkeys(LATER, ENOSYS)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the conventions of x86_64")
@whatever_the_kernel  # gVisor takes them for calls of 64 bits, and the filter sees them so
async def test_the_calls_of_32_bits_are_refused_too(laboratory: Laboratory) -> None:
    """By int 0x80, whose numbers are others (20 is getpid, 26 ptrace), and by the numbers of x32."""
    script = """
import ctypes, mmap, os
def routine(code):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return page, ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
for number in (20, 26, 102):
    # push rbx; mov eax, number; xor ebx, ebx; int 0x80; pop rbx; ret
    page, call = routine(b"\\x53\\xb8" + number.to_bytes(4, "little") + b"\\x31\\xdb\\xcd\\x80\\x5b\\xc3")
    print(call())
libc = ctypes.CDLL(None, use_errno=True)
for number in (39, 101):
    print(libc.syscall(0x40000000 + number, 0, 0, 0, 0), ctypes.get_errno())
"""
    assert (await laboratory.printed(script)).split() == ["-38"] * 3 + ["-1", "38"] * 2


async def test_core_dumps_stay_off_and_programs_that_turn_them_off_believe_they_have(laboratory: Laboratory) -> None:
    """A limit of 0 would let a host that pipes core dumps to a program run that, as root, on a script's memory."""
    script = """
import resource
for limit in ((0, 0), (1, 1), (0, 1), (100, 100)):
    resource.setrlimit(resource.RLIMIT_CORE, limit)
print(*resource.getrlimit(resource.RLIMIT_CORE))
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    assert (await laboratory.printed(script)).split() == ["1", "1", "50", "60"]


async def test_the_filter_is_on_the_runner_itself_and_every_child(laboratory: Laboratory) -> None:
    script = """
import os, subprocess, sys
def mode(pid):
    return dict(line.split(":", 1) for line in open("/proc/%s/status" % pid))["Seccomp"].strip()
print(mode(os.getppid()), mode("self"))
code = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.syscall(%d, 0), ctypes.get_errno())" % int(payload)
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
"""
    said = await laboratory.printed(script, payload=str(NUMBERS["unshare"][COLUMN]))
    assert said.split() == ["2", "2", "-1", "1"]


@pytest.mark.parametrize("backend_name", ["bubblewrap"])
async def test_a_sandbox_whose_kernel_takes_no_filter_does_not_start(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuum.sandbox.bubblewrap import BubblewrapBackend
    from continuum.sandbox.protocol import BackendUnavailable
    from tests.support import docker as lab

    backend = BubblewrapBackend(lab.settings(), lab.new_worker())
    monkeypatch.setattr(seccomp, "program", lambda: struct.pack("<HBBI", 0x06, 9, 9, 0)[:8] + bytes(8))
    with pytest.raises(BackendUnavailable, match="takes no seccomp filter: Invalid argument"):
        await backend.start()
    monkeypatch.undo()
    monkeypatch.setattr(seccomp, "MACHINES", ("riscv64",))
    with pytest.raises(BackendUnavailable, match=f"no seccomp filter for {os.uname().machine}"):
        await backend.start()


# -- what goes on working ----------------------------------------------------------------------------------------------

LIBRARIES = {
    "threads": """
import concurrent.futures, threading
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(lambda n: n * n, range(100))) == 328350
lock = threading.Lock()
threads = [threading.Thread(target=lock.acquire, args=(True, 0.01)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    "processes": """
import os, subprocess, sys
assert subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode == 7
assert subprocess.check_output([sys.executable, "-c", "print(1)"], start_new_session=True) == b"1\\n"
pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(3)"], {})
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
assert os.system("true") == 0 and os.popen("echo hello").read() == "hello\\n"
descriptor = os.pidfd_open(os.getpid())
""",
    "multiprocessing": """
import multiprocessing
from multiprocessing import shared_memory
def work(queue, number):
    queue.put(number)
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=work, args=(queue, 5))
        process.start()
        assert queue.get(timeout=10) == 5
        process.join()
        assert process.exitcode == 0
    block = shared_memory.SharedMemory(create=True, size=100000)
    block.buf[:4] = b"abcd"
    block.close()
    block.unlink()
    with multiprocessing.Manager() as manager:
        assert list(manager.list([1, 2])) == [1, 2]
""",
    "asyncio": """
import asyncio, sys
async def serve(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"line\\n")
    assert await reader.readline() == b"line\\n"
    writer.close()
    server.close()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(2)", stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"2\\n"
    assert await asyncio.to_thread(lambda: 3) == 3
asyncio.run(main())
""",
    "network": """
import select, socket, ssl
assert socket.getaddrinfo("localhost", 80)
socket.if_nameindex()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        socket.socket(family, kind | socket.SOCK_NONBLOCK).close()
left, right = socket.socketpair()
with select.epoll() as poll:
    poll.register(right, select.EPOLLIN)
    left.send(b"x")
    assert poll.poll(5)
socket.send_fds(left, [b"x"], [0])
ssl.create_default_context()
""",
    "files": """
import ctypes, mmap, os, sqlite3, tempfile, fcntl, pty
with tempfile.TemporaryDirectory() as folder:
    with sqlite3.connect(folder + "/base.db") as base:
        base.execute("pragma journal_mode = wal")
        base.execute("create table t (x)")
        base.execute("insert into t values (1)")
    base.close()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        mmap.mmap(file.fileno(), 8192)[:4] = b"abcd"
        assert os.pread(file.fileno(), 4, 0) == b"abcd"
    os.mkfifo(folder + "/fifo")
    os.symlink("fifo", folder + "/link")
descriptor = os.memfd_create("memory")
os.write(descriptor, b"x")
pty.openpty()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.inotify_init1(0) >= 0
assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)(1) == 2
""",
    "process": """
import faulthandler, os, resource, signal, time
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.02)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
assert signal.sigtimedwait([signal.SIGUSR1], 1).si_signo == signal.SIGUSR1
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.sched_setaffinity(os.getpid(), os.sched_getaffinity(0))
os.nice(1)
os.setpriority(os.PRIO_PROCESS, os.getpid(), 2)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
resource.setrlimit(resource.RLIMIT_STACK, (1 << 22, resource.getrlimit(resource.RLIMIT_STACK)[1]))
resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE, (100, 200))
faulthandler.enable()
os.urandom(8), os.getrandom(8), os.uname(), os.getloadavg(), os.times()
""",
}


async def test_no_lease_and_no_watch_on_files_that_others_open_and_no_huge_page(laboratory: Laboratory) -> None:
    code = """
import errno, fcntl, mmap, os
mine = os.open("mine", os.O_CREAT | os.O_RDONLY)
def attempt(action):
    try: return action()
    except OSError as error: return errno.errorcode[error.errno]
print(
    attempt(lambda: fcntl.fcntl(mine, 1024, fcntl.F_RDLCK)),
    attempt(lambda: fcntl.fcntl(os.open("/", os.O_RDONLY), 1026, 1)),
    attempt(lambda: mmap.mmap(-1, 1 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)),
    attempt(lambda: os.memfd_create("huge", 4)),
)
"""
    assert await laboratory.printed(code) == "EPERM EPERM ENOMEM ENOMEM\n"


@pytest.mark.parametrize("library", LIBRARIES)
@whatever_the_kernel
async def test_ordinary_libraries_go_on_working(laboratory: Laboratory, library: str) -> None:
    assert await laboratory.printed(LIBRARIES[library] + "\nif __name__ == '__main__': print('fine')") == "fine\n"
