"""More than its share: processes, memory, disk, processors, output and what users share without knowing.

Every script stops by itself a little above what a sandbox allows, so that a machine survives one that allows it.
"""

from __future__ import annotations

from tests.attacks.attack import CPUS, DISK_MB, OPEN_FILES, OUTPUT_LIMIT, PIDS, Attack, Evidence, Onlooker
from tests.attacks.runner import evidence_limit

_NO_GROUP_LIMIT = {"bubblewrap": "no memory or CPU limit for a group of processes"}
_MORE_PROCESSES = PIDS + 40
_MORE_DISK = DISK_MB * 2


def _flooded(evidence: Evidence) -> str:
    if evidence.lost:
        return f"it cost the sandbox: {evidence.attack.last_error}"
    for output in (evidence.attack.output or "", evidence.attack.error_output or ""):
        if len(output) > OUTPUT_LIMIT + 200:
            return f"{len(output)} characters of output were kept"
    if evidence.seconds > evidence_limit(evidence):
        return f"it held the worker for {evidence.seconds:.1f} s"
    return ""


def _fill(place: str) -> str:
    return f"""
written = 0
try:
    with open({place!r} + "/fill", "wb", 0) as file:
        while written < {_MORE_DISK} << 20:
            written += file.write(bytes(1 << 20))
finally:
    if written >= {_MORE_DISK} << 20: print("SUCCEEDED: wrote", written >> 20, "MB to", {place!r})
    os.unlink({place!r} + "/fill")
"""


ATTACKS = (
    Attack(
        name="fork-bomb",
        wants="more processes than it may have",
        code=f"""
children = []
try:
    while len(children) < {_MORE_PROCESSES}:
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        children.append(pid)
    print("SUCCEEDED: %d processes at once" % len(children))
except OSError as error:
    print("STOPPED: after %d processes: %s" % (len(children), error), flush=True)
for pid in children: os.kill(pid, signal.SIGKILL)
""",
        may_die=True,  # gVisor's own memory for each process counts, too
        timeout=20.0,
    ),
    Attack(
        name="thread-bomb",
        wants="more threads than it may have",
        code=f"""
enough = threading.Event()
started = 0
try:
    for _ in range({_MORE_PROCESSES}):
        threading.Thread(target=enough.wait, daemon=True).start()
        started += 1
    print("SUCCEEDED: %d threads at once" % started)
except (RuntimeError, MemoryError) as error:
    print("STOPPED: after %d threads: %s" % (started, error))
enough.set()
""",
        timeout=20.0,
    ),
    Attack(
        name="zombie-flood",
        wants="a process table full of the dead",
        code=f"""
children = []
try:
    while len(children) < {_MORE_PROCESSES}:
        pid = os.fork()
        if pid == 0: os._exit(0)
        children.append(pid)
    print("SUCCEEDED: %d zombies" % len(children))
except OSError as error:
    print("STOPPED: after %d zombies: %s" % (len(children), error))
for pid in children: os.waitpid(pid, 0)
""",
        timeout=20.0,
    ),
    Attack(
        name="memory-hog",
        wants="more memory than it may have, in one process",
        code="""
held = []
try:
    for _ in range(WORLD["too_much_memory"]): held.append(bytearray(os.urandom(4096) * 256))
except MemoryError:
    held.clear()
    stopped("MemoryError")
size = len(held)
held.clear()
succeeded("%d MB" % size)
""",
        may_die=True,
        timeout=10.0,
    ),
    Attack(
        name="memory-hogs",
        wants="more memory than it may have, spread over processes",
        code="""
receiver, sender = os.pipe()
share = WORLD["too_much_memory"] // 4
for _ in range(4):
    if os.fork() == 0:
        held = [bytearray(os.urandom(4096) * 256) for _ in range(share)]
        os.write(sender, b".")
        time.sleep(5)
        os._exit(0)
os.close(sender)
reached = 0
deadline = time.monotonic() + 4
while reached < 4 and time.monotonic() < deadline:
    if select.select([receiver], [], [], 0.2)[0]:
        reached += len(os.read(receiver, 4))
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: stopped("the kernel killed one of them")
    except ChildProcessError:
        stopped("all were killed")
if reached == 4: succeeded("4 processes hold %d MB" % (4 * share))
stopped("%d of 4 got their share" % reached)
""",
        may_die=True,
        timeout=10.0,
        open_on=_NO_GROUP_LIMIT,
    ),
    Attack(
        name="memory-as-files",
        wants="memory that counts as nobody's: files without a name",
        code="""
held = []
try:
    for _ in range(WORLD["too_much_memory"] // 8):
        held.append(syscall("memfd_create", b"hog", 0))
        for _ in range(8): os.write(held[-1], os.urandom(4096) * 256)
except OSError as error:
    stopped("after %d MB: %s" % (8 * len(held), error))
succeeded("%d MB in %d files" % (8 * len(held), len(held)))
""",
        may_die=True,
        timeout=10.0,
        open_on=_NO_GROUP_LIMIT,
    ),
    Attack(
        name="memory-as-system-v-segments",
        wants="memory that counts as nobody's: System V shared memory",
        code="""
libc.shmat.restype = ctypes.c_void_p
size = WORLD["too_much_memory"] << 20
number = checked(libc.shmget(0, size, 0o1600), "shmget")
try:
    address = checked(libc.shmat(number, None, 0), "shmat")
    for page in range(0, size, 4096): ctypes.memset(address + page, 1, 1)
    print("SUCCEEDED: %d MB in one segment" % (size >> 20))
finally:
    libc.shmctl(number, 0, None)
""",
        may_die=True,
        timeout=10.0,
    ),
    Attack(
        name="locked-memory",
        wants="memory that can never be given to others",
        code="""
buffer = mmap.mmap(-1, 32 << 20)
checked(libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer))), 32 << 20), "mlock")
succeeded("32 MB are locked")
""",
        may_die=True,
    ),
    Attack(name="fill-tmp", wants="to fill /tmp beyond its size", code=_fill("/tmp")),
    Attack(name="fill-work-directory", wants="to fill its own directory beyond its size", code=_fill("/sandbox/work")),
    Attack(name="fill-shared-memory", wants="to fill /dev/shm beyond its size", code=_fill("/dev/shm")),
    Attack(
        name="fill-elsewhere",
        wants="a writable place that nobody thought of, to fill the host's disk",
        code=f"""
known = ("/tmp", "/sandbox", "/dev/shm", "/proc", "/sys")
places = {{"/", "/run", "/var/tmp", "/run/lock", "/dev", "/dev/mqueue", "/var/lock", "/etc", "/home", "/var/cache"}}
places |= {{line.split()[4] for line in open("/proc/self/mountinfo")}}
tried = 0
for place in sorted(places):
    if place.startswith(known) or not os.path.isdir(place) or not os.access(place, os.W_OK): continue
    tried += 1
    written = 0
    try:
        with open(place + "/fill", "wb", 0) as file:
            while written < {_MORE_DISK} << 20: written += file.write(bytes(1 << 20))
    except OSError: pass
    try:
        os.unlink(place + "/fill")
    except OSError: pass
    if written >= {_MORE_DISK} << 20: succeeded("%d MB in %s" % (written >> 20, place))
stopped("%d places could be written to, none of them so much" % tried)
""",
    ),
    Attack(
        name="use-up-inodes",
        wants="so many empty files that the memory for their names runs out",
        code=f"""
os.mkdir("/tmp/many")
made = 0
try:
    while made < {DISK_MB * 256 + 2000}:
        os.close(os.open("/tmp/many/%d" % made, os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    stopped("after %d files: %s" % (made, error))
succeeded("%d files" % made)
""",
        mess=True,
        timeout=15.0,
        open_on={
            "bubblewrap": "no limit to the number of files",
            "runsc": "gVisor counts no files; their names cost its own memory, which is limited",
        },
    ),
    Attack(
        name="flood-output",
        wants="to drown the worker in output",
        code="for _ in range(70): os.write(1, b'flood\\n' * 10000)",
        judge=_flooded,
        timeout=10.0,
    ),
    Attack(
        name="flood-error-output",
        wants="to drown the worker in error output",
        code="for _ in range(70): os.write(2, b'flood\\n' * 10000)",
        judge=_flooded,
        timeout=10.0,
    ),
    Attack(
        name="flood-without-newlines",
        wants="one endless line, where somebody waits for its end",
        code="for _ in range(4): os.write(1, b'x' * (1 << 20))",
        judge=_flooded,
        timeout=10.0,
    ),
    Attack(
        name="flood-until-the-end",
        wants="to keep both outputs full until its time is up, and hold its sandbox",
        code="""
if os.fork() == 0:
    while True: os.write(2, b"\\x00\\xff" * 30000)
while True: os.write(1, b"\\x00\\xff" * 30000)
""",
        judge=_flooded,
        timeout=1.0,
    ),
    Attack(
        name="burn-processors",
        wants="more of the processors than its share",
        code=f"""
print("burning", flush=True)
until = time.monotonic() + 1.6
started = time.monotonic()
for _ in range(4):
    if os.fork() == 0:
        while time.monotonic() < until: pass
        os._exit(0)
for _ in range(4): os.waitpid(-1, 0)
times = os.times()
share = (times.children_user + times.children_system) / (time.monotonic() - started)
if share > {CPUS * 1.3}: succeeded("%.2f processors" % share)
stopped("%.2f processors" % share)
""",
        timeout=15.0,
        onlooker=Onlooker.METER,
        needs="processors that have nothing else to do",
        open_on=_NO_GROUP_LIMIT,
    ),
    Attack(
        name="use-up-descriptors",
        wants="the host's table of open files",
        code=f"""
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
opened = []
try:
    while len(opened) < {OPEN_FILES * 2}: opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    for descriptor in opened: os.close(descriptor)
    stopped("after %d files: %s" % (len(opened), error))
for descriptor in opened: os.close(descriptor)
succeeded("%d open files" % len(opened))
""",
    ),
    Attack(
        name="dump-core",
        wants="a core dump, which a host may hand to a program of its own that runs as root",
        code="""
try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
except (OSError, ValueError): pass
pid = os.fork()
if pid == 0:
    os.chdir("/tmp")
    os.abort()
status = os.waitpid(pid, 0)[1]
if os.WCOREDUMP(status): succeeded("a core was dumped")
stopped("nothing was dumped, limits are %s" % (resource.getrlimit(resource.RLIMIT_CORE),))
""",
    ),
    Attack(
        name="message-queues",
        wants="memory in message queues, which belong to nobody",
        code="""
number = checked(libc.mq_open(b"/hog", 0o102, 0o666, None), "mq_open")
succeeded("queue %d was made" % number)
""",
    ),
    Attack(
        name="use-up-inotify",
        wants="what all processes of one user on a host share: inotify instances",
        code="""
drop(WORLD["shared_uid"])
held = 0
while held < 200 and libc.inotify_init1(0) >= 0: held += 1
print("holding", held, flush=True)
time.sleep(1.8)
""",
        neighbour="""
drop(WORLD["shared_uid"])
for _ in range(40):
    number = libc.inotify_init1(0)
    if number < 0: succeeded("no inotify instance is to be had in another sandbox")
    os.close(number)
    time.sleep(0.02)
stopped("there is room for others")
""",
        onlooker=Onlooker.NEIGHBOUR,
        timeout=8.0,
    ),
    Attack(
        name="use-up-pipe-buffers",
        wants="what all processes of one user on a host share: room in pipes",
        code="""
drop(WORLD["shared_uid"])
held = 0
try:
    for _ in range(80):
        receiver, sender = os.pipe()
        held += fcntl.fcntl(sender, 1031, 1 << 20)
except OSError: pass
try:
    for _ in range(400): os.pipe()
except OSError: pass
print("holding", held, flush=True)
time.sleep(1.8)
""",
        neighbour="""
drop(WORLD["shared_uid"])
for _ in range(40):
    receiver, sender = os.pipe()
    size = fcntl.fcntl(sender, 1032)
    if size < 65536: succeeded("a pipe in another sandbox holds %d bytes" % size)
    os.close(receiver); os.close(sender)
    time.sleep(0.02)
stopped("there is room for others")
""",
        onlooker=Onlooker.NEIGHBOUR,
        timeout=8.0,
    ),
)
