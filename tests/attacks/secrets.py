"""What belongs to the worker or to another tenant: settings, addresses, payloads, files, memory, processes."""

from __future__ import annotations

from tests.attacks.attack import Attack, Evidence


def _shared_a_sandbox(evidence: Evidence) -> str:
    return "it ran in the sandbox in which another tenant's task had run" if evidence.shared else ""


_READ_ENVIRONMENTS = """
def environments():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid():
            try:
                yield "the environment of " + pid, open("/proc/%s/environ" % pid, "rb").read()
            except OSError: pass
"""

_READ_COMMANDS = """
def commands():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            yield "the command line of " + pid, open("/proc/%s/cmdline" % pid, "rb").read()
        except OSError: pass
"""

WORKER = (
    Attack(
        name="worker-environment",
        wants="the worker's environment, in its own",
        code="search(WORKER, ((name, value.encode()) for name, value in os.environ.items()))",
    ),
    Attack(
        name="worker-environment-of-others",
        wants="the worker's environment, in that of the runner or of process 1",
        code=_READ_ENVIRONMENTS + "search(WORKER, environments())",
    ),
    Attack(
        name="worker-settings-on-disk",
        wants="the database's address and password, in a file",
        code="search(WORKER, contents(files_below('/', depth=3)))",
    ),
    Attack(
        name="database-address",
        wants="an address of the database",
        code=_READ_ENVIRONMENTS
        + _READ_COMMANDS
        + """
wanted = re.compile(rb"(postgres|cockroach)(ql)?:" + rb"//[^ \\0]+")
own = [("its own environment", "\\0".join(os.environ.values()).encode())]
for place, data in [*own, *environments(), *commands(), *contents(files_below("/etc", "/run", "/sandbox", "/tmp"))]:
    found = wanted.search(data)
    if found: succeeded("%s: %s" % (place, found.group()[:60].decode("utf-8", "replace")))
stopped("there is none")
""",
    ),
    Attack(
        name="host-name-of-worker",
        wants="the name of the worker's host",
        code="""
name = WORLD["host_name"]
places = [("uname", os.uname().nodename), *(("environment " + key, value) for key, value in os.environ.items()
           if not key.startswith("CONTINUUM_PAYLOAD"))]
files = ["/etc/hosts", "/etc/hostname", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/cmdline"]
places += [(path, data.decode("utf-8", "replace")) for path, data in contents(files)]
for place, text in places:
    if name in re.split(r"[^a-z0-9.-]+", text): succeeded("%s: %s" % (place, text[:60]))
stopped("it is not to be found")
""",
    ),
    Attack(
        name="earlier-environment",
        wants="the variables of an earlier task, its payload among them",
        before="token = payload",
        code="search(VICTIM, ((name, value.encode()) for name, value in os.environ.items()))",
        tenants=True,
    ),
    Attack(
        name="earlier-files",
        wants="the payload or code of an earlier task, in a file that was not removed",
        before="open('notes', 'w').write(payload)\nopen('/tmp/notes', 'w').write(payload)",
        code="search(VICTIM, contents(files_below('/tmp', '/sandbox', '/dev/shm')))",
        tenants=True,
    ),
    Attack(
        name="earlier-files-through-descriptors",
        wants="an earlier task's file through a descriptor that is still open",
        before="import os\nos.open('/tmp/held', os.O_CREAT | os.O_RDWR)\nopen('/tmp/held', 'w').write(payload)",
        code="search(VICTIM, contents('/proc/self/fd/%d' % number for number in range(3, 64)))",
        tenants=True,
    ),
    Attack(
        name="earlier-tenant-in-memory",
        wants="a byte of another tenant's payload anywhere in its memory",
        before="token = payload",
        code="""
found = shifted_memory(VICTIM)
if found: succeeded(found)
stopped("nothing in all readable memory")
""",
        tenants=True,
        timeout=15.0,
    ),
    Attack(
        name="earlier-output",
        wants="what an earlier task printed, in a pipe or buffer",
        before="print(payload, flush=True)",
        code="""
for descriptor in range(64):
    try:
        os.set_blocking(descriptor, False)
        data = os.read(descriptor, 65536)
    except OSError:
        continue
    if (VICTIM + "-").encode() in data: succeeded("descriptor %d holds %r" % (descriptor, data[:40]))
for descriptor in (0, 1, 2): os.set_blocking(descriptor, True)
found = shifted_memory(VICTIM)
if found: succeeded(found)
stopped("it is gone")
""",
        tenants=True,
        timeout=15.0,
    ),
)

NEIGHBOURS = (
    Attack(
        name="share-a-sandbox",
        wants="to run where another tenant's task has run, in the hope that something was overlooked",
        before="token = payload",
        code="stopped('a sandbox of its own')",
        judge=_shared_a_sandbox,
        tenants=True,
    ),
    Attack(
        name="neighbour-command-line",
        wants="what other tenants run, with their arguments",
        code=_READ_COMMANDS + "search(VICTIM, commands())",
    ),
    Attack(
        name="neighbour-environment",
        wants="the environment of another tenant's process",
        code=_READ_ENVIRONMENTS + "search(VICTIM, environments())",
    ),
    Attack(
        name="neighbour-files",
        wants="the files that another tenant works on at this moment",
        code="search(VICTIM, contents(files_below('/tmp', '/dev/shm', '/sandbox', '/var/tmp', '/run')))",
    ),
    Attack(
        name="neighbour-files-through-proc",
        wants="the same through another process's root and working directory",
        code="""
def paths():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for folder in ("cwd", "root/tmp", "root/dev/shm", "root/sandbox/work"):
            place = "/proc/%s/%s" % (pid, folder)
            if int(pid) != os.getpid() and os.path.isdir(place):
                try:
                    yield from (place + "/" + name for name in os.listdir(place) if name.startswith("neighbour"))
                except OSError: pass
search(VICTIM, contents(paths()))
""",
    ),
    Attack(
        name="neighbour-shared-memory",
        wants="another tenant's System V shared memory, by its well-known key",
        code="""
libc.shmat.restype = ctypes.c_void_p
address = checked(libc.shmat(checked(libc.shmget(0x5EC2E7, 4096, 0), "shmget"), None, 0), "shmat")
search(VICTIM, [("the segment", ctypes.string_at(address, 64))])
""",
    ),
    Attack(
        name="neighbour-abstract-socket",
        wants="another tenant's socket that has no file",
        code="""
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(2)
    client.connect("\\0neighbour")
    search(VICTIM, [("the socket", client.recv(100))])
""",
    ),
    Attack(
        name="neighbour-loopback",
        wants="another tenant's server on loopback",
        code="""
with socket.create_connection(("127.0.0.1", 7777), timeout=2) as client:
    search(VICTIM, [("the server", client.recv(100))])
""",
    ),
    Attack(
        name="neighbour-memory",
        wants="the memory of another tenant's process",
        code="""
def memories():
    for pid in other_processes():
        try:
            places = [line.split() for line in open("/proc/%d/maps" % pid)]
            with open("/proc/%d/mem" % pid, "rb", 0) as memory:
                for place in places:
                    if place[1].startswith("rw") and ("[heap]" in place or "[stack]" in place):
                        start, end = (int(number, 16) for number in place[0].split("-"))
                        memory.seek(start)
                        yield "the memory of %d" % pid, memory.read(min(end - start, 8 << 20))
        except OSError: pass
search(VICTIM, memories())
""",
    ),
    Attack(
        name="neighbour-signals",
        wants="to end another tenant's process",
        code="""
for pid in other_processes():
    try:
        os.kill(pid, signal.SIGKILL)
        succeeded("killed process %d" % pid)
    except OSError as error:
        why = error
stopped("there is no other process" if not other_processes() else why)
""",
        mess=True,
    ),
    Attack(
        name="neighbour-trace",
        wants="to steer another tenant's process as a debugger does",
        code="""
why = "there is no other process"
for pid in other_processes():
    try:
        syscall("ptrace", 0x4206, pid, 0, 0)
        succeeded("seized process %d" % pid)
    except OSError as error:
        why = error
stopped(why)
""",
    ),
)

ATTACKS = (*WORKER, *NEIGHBOURS)
