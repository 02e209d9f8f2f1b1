"""Against the runner: to kill, steer, read or impersonate the process that stands between script and worker."""

from __future__ import annotations

from tests.attacks.attack import Attack, Evidence

FORGED = "f0rged"


def _sandbox_was_lost(evidence: Evidence) -> str:
    return f"the runner is gone: {evidence.attack.last_error}" if evidence.lost else ""


def _outlived_its_timeout(evidence: Evidence) -> str:
    if evidence.lost:
        return f"the runner could not end it: {evidence.attack.last_error}"
    if evidence.seconds > evidence_limit(evidence):
        return f"it was held for {evidence.seconds:.1f} s"
    return ""


def evidence_limit(evidence: Evidence) -> float:
    """Seconds after which a task with a timeout must have ended, on a machine that has other things to do."""
    return (evidence.attack.timeout or 0) + 3.0


def _output_was_forged(evidence: Evidence) -> str:
    lines = (evidence.attack.output or "").splitlines()
    return "the worker took a line that was never printed" if FORGED in lines else ""


def _exit_was_forged(evidence: Evidence) -> str:
    if evidence.attack.status == "completed":
        return "a script that ended with 3 is recorded as completed"
    return ""


def _completed_while_it_ran(evidence: Evidence) -> str:
    if evidence.attack.status == "completed":
        return "recorded as completed while it still ran"
    return _outlived_its_timeout(evidence)


def _wrote_into_the_next_output(evidence: Evidence) -> str:
    assert evidence.aftermath is not None
    found = "intruder" in (evidence.aftermath.output or "") + (evidence.aftermath.error_output or "")
    return f"the next task's output holds {evidence.aftermath.output!r}" if found else ""


_FRAME = f"frame = struct.pack('!cI', b'O', {len(FORGED) + 2}) + b'\\n{FORGED}\\n'\n"
_EXIT = """
exit = json.dumps({"status": 0, "timed_out": False, "out_of_cpu_time": False, "oom": False, "too_many_processes": False,
                   "full": [], "dropped_output": 0, "dropped_error": 0}).encode()
frame = struct.pack("!cI", b"X", len(exit)) + exit
"""

ATTACKS = (
    Attack(
        name="kill-runner",
        wants="to end the runner",
        code="os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1)",
        judge=_sandbox_was_lost,
    ),
    Attack(
        name="kill-everybody",
        wants="to end whatever it may",
        code="os.kill(-1, signal.SIGKILL)\ntime.sleep(0.5)\nstopped('nobody was there')",
        judge=_sandbox_was_lost,
    ),
    Attack(
        name="stop-runner",
        wants="to halt the runner, so that nobody watches the time",
        code="os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)",
        timeout=1.0,
        judge=_outlived_its_timeout,
    ),
    Attack(
        name="signal-storm",
        wants="to confuse the runner with signals",
        code="""
sent = 0
for _ in range(50):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM, 34):
        for pid in {1, os.getppid()}:
            try:
                os.kill(pid, number)
                sent += 1
            except OSError as error:
                why = error
time.sleep(0.3)
stopped(why if not sent else "%d signals were sent, and made no difference" % sent)
""",
        judge=_sandbox_was_lost,
    ),
    Attack(
        name="forge-output",
        mess=True,
        wants="to write frames of its own to the worker, on every descriptor that there is",
        code=_FRAME
        + """
written = []
for number in range(3, 256):
    try:
        os.write(number, frame)
        written.append(number)
    except OSError: pass
print("written to %s" % written)
""",
        judge=_output_was_forged,
    ),
    Attack(
        name="forge-output-through-proc",
        mess=True,
        wants="the same through the runner's descriptors in /proc",
        code=_FRAME
        + """
why = "there are none"
for pid in {1, os.getppid()}:
    for number in (1, 3, 4, 5):
        try:
            with open("/proc/%d/fd/%d" % (pid, number), "wb", 0) as channel:
                channel.write(frame)
        except OSError as error:
            why = error
time.sleep(0.2)
print(why)
""",
        judge=_output_was_forged,
    ),
    Attack(
        name="forge-exit",
        mess=True,
        wants="to be recorded as completed when it failed",
        code=_EXIT
        + """
for number in range(3, 256):
    try:
        os.write(number, frame)
    except OSError: pass
time.sleep(0.3)
os._exit(3)
""",
        judge=_exit_was_forged,
    ),
    Attack(
        name="forge-exit-by-fork",
        mess=True,
        wants="two processes to return from one script, so that the wrong one's end is recorded",
        code="""
if os.fork() == 0:
    raise SystemExit(0)
time.sleep(0.5)
os._exit(3)
""",
        judge=_exit_was_forged,
    ),
    Attack(
        name="close-outputs",
        mess=True,
        wants="to be taken for ended while it runs on",
        code="""
for descriptor in (1, 2):
    os.close(descriptor)
time.sleep(30)
""",
        timeout=1.0,
        judge=_completed_while_it_ran,
    ),
    Attack(
        name="ignore-the-end",
        wants="to run on past its timeout by ignoring every signal",
        code="""
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(30)
""",
        timeout=1.0,
        judge=_outlived_its_timeout,
    ),
    Attack(
        name="stop-itself",
        wants="to stand still, where no polite signal is heard",
        code="os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(30)",
        timeout=1.0,
        judge=_outlived_its_timeout,
    ),
    Attack(
        name="deaf-in-a-regular-expression",
        wants="to hold the interpreter in a loop that runs no handlers",
        code="signal.signal(signal.SIGTERM, lambda *_: None)\nre.match('(a+)+$', 'a' * 64 + 'b')",
        timeout=1.0,
        judge=_outlived_its_timeout,
    ),
    Attack(
        name="write-into-next-output",
        wants="to keep the outputs open, and write into the next task's",
        code="""
def intrude():
    while True:
        for descriptor in (1, 2):
            try:
                os.write(descriptor, b"intruder\\n")
            except OSError: pass
        time.sleep(0.01)
daemon(intrude)
""",
        aftermath="time.sleep(0.3)\nstopped('the output is its own')",
        judge=_wrote_into_the_next_output,
    ),
    Attack(
        name="read-requests",
        wants="the stream on which the next task's code and payload come",
        code="""
for descriptor in range(256):
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError:
        continue
    if (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)) and descriptor not in (1, 2):
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if access in (os.O_RDONLY, os.O_RDWR):
            succeeded("descriptor %d is %s" % (descriptor, os.readlink("/proc/self/fd/%d" % descriptor)))
stopped("no stream can be read")
""",
    ),
    Attack(
        name="trace-runner",
        wants="to steer the runner as a debugger does",
        code="syscall('ptrace', 0x4206, os.getppid(), 0, 0)\nsucceeded('the runner is traced')",
    ),
    Attack(
        name="read-memory-of-runner",
        wants="the runner's memory",
        code="""
runner = os.getppid()
heap = [line.split()[0] for line in open("/proc/%d/maps" % runner) if "[heap]" in line]
start = int(heap[0].split("-")[0], 16) if heap else id(object())
local = ctypes.create_string_buffer(64)
here, there = struct.pack("QQ", ctypes.addressof(local), 64), struct.pack("QQ", start, 64)
syscall("process_vm_readv", runner, here, 1, there, 1, 0)
succeeded("64 bytes: %s" % local.raw[:16].hex())
""",
    ),
    Attack(
        name="write-memory-of-runner",
        wants="the runner to run what it is told",
        code="""
runner = os.getppid()
with open("/proc/%d/mem" % runner, "r+b", 0) as memory:
    start = int([line.split("-")[0] for line in open("/proc/%d/maps" % runner) if "rw-p" in line][0], 16)
    memory.seek(start)
    held = memory.read(8)
    memory.seek(start)
    memory.write(held)
succeeded("8 bytes of the runner's were written, with what they held")
""",
    ),
    Attack(
        name="steal-descriptors-of-runner",
        wants="the runner's descriptors through pidfd_getfd",
        code="""
handle = syscall("pidfd_open", os.getppid(), 0)
succeeded("its descriptor 1 is ours as %d" % syscall("pidfd_getfd", handle, 1, 0))
""",
    ),
    Attack(
        name="limit-runner",
        wants="to take away what the runner may use",
        code="""
limits = ctypes.create_string_buffer(16)
syscall("prlimit64", os.getppid(), 7, None, limits)
syscall("prlimit64", os.getppid(), 7, limits, None)
succeeded("its limit of files was written with what it was: %s" % (struct.unpack("QQ", limits.raw),))
""",
    ),
    Attack(
        name="sacrifice-runner",
        wants="the kernel to end the runner first when memory runs out",
        code="""
with open("/proc/%d/oom_score_adj" % os.getppid(), "w") as file:
    file.write("500")
succeeded("its score is 500")
""",
    ),
    Attack(
        name="open-files-of-runner",
        wants="to see what the runner has open",
        code="succeeded(os.listdir('/proc/%d/fd' % os.getppid()))",
        open_on={"runsc": "gVisor of 2022 shows the numbers; to open them is refused, as other attacks show"},
    ),
    Attack(
        name="earlier-requests-by-garbage-collector",
        wants="the request of an earlier task, among the interpreter's objects",
        before="token = payload",
        code="""
import gc
def inside(thing, depth=2):
    if type(thing) in (str, bytes): yield thing
    elif depth and type(thing) in (dict, list, tuple):
        for each in list(thing.values() if type(thing) is dict else thing):
            yield from inside(each, depth - 1)
for thing in gc.get_objects():
    try:
        for value in inside(thing):
            found = first_mark(VICTIM, value)
            if found: succeeded("a %s holds %s" % (type(thing).__name__, found))
    except (RuntimeError, ReferenceError): pass
stopped("no object holds it")
""",
    ),
    Attack(
        name="earlier-payload-in-memory",
        wants="a byte of an earlier payload anywhere in its memory",
        before="token = payload",
        code="""
found = shifted_memory(VICTIM)
if found: succeeded(found)
stopped("nothing in all readable memory")
""",
        timeout=15.0,
    ),
    Attack(
        name="earlier-payload-in-frames",
        wants="what the runner's own frames and modules hold",
        before="token = payload",
        code="""
places = [("module " + name, vars(module)) for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")]
frame = sys._getframe()
while frame is not None:
    places += [("a frame's locals", dict(frame.f_locals)), ("a frame's globals", dict(frame.f_globals))]
    frame = frame.f_back
for place, variables in places:
    for name, value in list(variables.items()):
        found = first_mark(VICTIM, value if type(value) in (str, bytes) else repr(value)) \
            if type(value) in (str, bytes, list, dict, tuple) else ""
        if found: succeeded("%s, %s: %s" % (place, name, found))
stopped("they hold nothing of it")
""",
    ),
)
