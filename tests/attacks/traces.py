"""What a task leaves behind that is neither process nor file: objects of the kernel's, and a changed interpreter."""

from __future__ import annotations

from tests.attacks.attack import Attack, Evidence


def _next_task_suffered(evidence: Evidence) -> str:
    assert evidence.aftermath is not None
    if evidence.aftermath.status != "completed":
        return f"the next task did not complete: {evidence.aftermath.last_error}"
    return ""


_SYSV = """
objects = [(kind, line.split()[1]) for kind in ("shm", "sem", "msg")
           for line in list(open("/proc/sysvipc/" + kind))[1:] if line.split()[0] != str(0x5EC2E7)]
"""

KERNEL = (
    Attack(
        name="leave-system-v-objects",
        wants="shared memory, semaphores and message queues that belong to no process",
        code="""
for mode in (0o666, 0):
    libc.shmget(0, 4096, 0o1000 | mode)
    libc.semget(0, 1, 0o1000 | mode)
    libc.msgget(0, 0o1000 | mode)
""",
        aftermath=_SYSV + "if objects: succeeded(objects)\nstopped('there are none')",
    ),
    Attack(
        name="leave-message-queue",
        wants="a POSIX message queue",
        code="libc.mq_open(b'/left', 0o102, 0o666, None)",
        aftermath="checked(libc.mq_open(b'/left', 0), 'mq_open')\nsucceeded('the queue is there')",
    ),
    Attack(
        name="leave-key",
        wants="a key in a keyring of its user's",
        code="""
for ring in (-2, -3, -4, -5):
    libc.syscall(NUMBERS["add_key"], b"user", b"left", b"secret", 6, ring)
""",
        aftermath="""
for ring in (-2, -3, -4, -5):
    found = libc.syscall(NUMBERS["keyctl"], 10, ring, b"user", b"left", 0)
    if found > 0: succeeded("key %d" % found)
stopped(os.strerror(ctypes.get_errno()))
""",
    ),
    Attack(
        name="leave-abstract-socket",
        wants="a server on a socket without a file",
        code="""
def serve():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\\0left")
        server.listen()
        time.sleep(30)
daemon(serve)
time.sleep(0.1)
""",
        aftermath="""
with socket.socket(socket.AF_UNIX) as client:
    client.connect("\\0left")
    succeeded("the server answers")
""",
    ),
    Attack(
        name="leave-server-on-loopback",
        wants="a server where the next task expects its own",
        code="""
def serve():
    with socket.create_server(("127.0.0.1", 5432)) as server:
        time.sleep(30)
daemon(serve)
time.sleep(0.1)
""",
        aftermath="socket.create_connection(('127.0.0.1', 5432), timeout=2).close()\nsucceeded('somebody listens there')",
    ),
    Attack(
        name="leave-lock",
        wants="a lock that the next task waits for",
        code="""
def hold():
    fcntl.flock(os.open("/tmp", os.O_RDONLY), fcntl.LOCK_EX)
    time.sleep(30)
daemon(hold)
time.sleep(0.1)
""",
        aftermath="""
place = os.open("/tmp", os.O_RDONLY)
try:
    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    succeeded("/tmp is locked")
stopped("the lock is to be had")
""",
    ),
)

INTERPRETER = (
    Attack(
        name="change-builtins",
        wants="to change a function that the next task calls",
        code="import builtins\nbuiltins.sorted = lambda *_, **__: ['evil']",
        aftermath="if sorted([2, 1]) != [1, 2]: succeeded('sorted gives %s' % sorted([2, 1]))\nstopped('sorted sorts')",
    ),
    Attack(
        name="change-modules",
        wants="to change a module that the next task imports",
        code="sys.modules['colorsys'] = type(sys)('colorsys')\nsys.modules['colorsys'].EVIL = True",
        aftermath="import colorsys\nif hasattr(colorsys, 'EVIL'): succeeded('it is ours')\nstopped('it is the usual one')",
    ),
    Attack(
        name="change-import-path",
        wants="the next task's imports to look in a place of its choice",
        code="sys.path.insert(0, '/tmp/evil')\nsys.meta_path.insert(0, type('Evil', (), {'find_spec': lambda *_: None})())",
        aftermath="""
if "/tmp/evil" in sys.path: succeeded(sys.path)
if type(sys.meta_path[0]).__name__ == "Evil": succeeded(sys.meta_path)
stopped("the paths are as ever")
""",
    ),
    Attack(
        name="change-environment",
        wants="to set a variable for the next task",
        code="os.environ['LD_PRELOAD'] = '/tmp/evil.so'\nos.environ['EVIL'] = '1'",
        aftermath="if os.environ.get('EVIL'): succeeded('EVIL is set')\nstopped('it is not set')",
    ),
    Attack(
        name="spy-with-a-hook",
        wants="to watch the next task through an audit hook",
        code="sys.addaudithook(lambda event, arguments: sys.__dict__.setdefault('spied', []).append(event))",
        aftermath="open('/dev/null').close()\nif hasattr(sys, 'spied'): succeeded(sys.spied[-1])\nstopped('nobody listens')",
    ),
    Attack(
        name="leave-thread",
        wants="a thread that runs on in the next task's interpreter",
        code="threading.Thread(target=time.sleep, args=(30,), name='l1ngerer', daemon=True).start()",
        aftermath="""
names = [thread.name for thread in threading.enumerate()]
if "l1ngerer" in names: succeeded(names)
stopped(names)
""",
    ),
    Attack(
        name="leave-alarm",
        wants="a timer that ends the next task",
        code="signal.alarm(1)",
        aftermath="time.sleep(1.3)\nstopped('no alarm went off')",
        judge=_next_task_suffered,
    ),
    Attack(
        name="change-signals",
        wants="the next task not to hear signals",
        code="signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
        aftermath="""
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: succeeded("SIGINT is ignored")
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
if blocked: succeeded("blocked are %s" % blocked)
stopped("signals are as ever")
""",
    ),
    Attack(
        name="lower-limits",
        wants="to take away what the next task may use",
        code="""
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
os.umask(0o777)
os.nice(10)
""",
        aftermath="""
now = resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.umask(0o022), os.nice(0)
if now[0] < 65 or now[1] == 0o777 or now[2] > 0: succeeded("files, umask, nice: %s" % (now,))
stopped("files, umask, nice: %s" % (now,))
""",
    ),
    Attack(
        name="remove-directory-from-under",
        wants="to take away the directory that the next task works in",
        code="os.rename('/sandbox/work', '/sandbox/moved')\nopen('/sandbox/work', 'w').close()",
        aftermath="open('mine', 'w').close()\nstopped('the directory is there')",
        judge=_next_task_suffered,
    ),
)

ATTACKS = (*KERNEL, *INTERPRETER)
