"""The program inside a sandbox. It forks a child for each script, and cleans up after it.

Standard library only, Python 3.8 and newer; it never imports anything of Continuum, whose channel sends this file's text
through stdin and speaks the following with it. All numbers are big-endian.

    worker -> runner   configuration: u32 length, JSON
    worker -> runner   request: u32 timeout in ms, u32 output limit, u64 body length, body
                       body: u32 length, NAME=value with a zero byte behind each; u32 length, code; u32 length, payload
    runner -> worker   frames: one letter, u32 length, data
                       R ready   O output   E error output   X exit (JSON)   F fatal (text)

Before all else the runner gives up the system calls that no script may make: the filter, a seccomp program, comes with the
configuration, and every child inherits it.

The process that speaks with the worker never holds a request: the child is forked before one comes, and reads it itself.
It passes on the head of it and, later, that it has read it all. Output passes through one buffer, which is wiped each
time. So nothing of one script is in the memory that the next is forked from. After each script every other process is
killed, every writable place is emptied, and only then is the next child forked and `ready` said. Anything that cannot be
cleaned ends the runner, and the worker discards the sandbox.

Most of what a short script costs is pages: each that the child, or the runner after it, writes to is copied first, and
reading an object writes to it. So what can be made once is made before the first fork, and modules of the interpreter's
own are used where those around them do more than is needed here.
"""

import _signal as signal  # whose enumerations cost more than its system calls
import _socket  # not socket, whose other imports every script would carry
import atexit
import ctypes
import gc
import itertools
import json
import os
import resource
import select
import stat
import struct
import sys
import time

HEADER = struct.Struct("!IIQ")
LENGTH = struct.Struct("!I")
FRAME = struct.Struct("!cI")
CHUNK = 65536
LARGEST_PACKET = 4096  # of a pipe that keeps each write apart; what does not fit into a read of one is lost
AT_ONCE = 0.005  # seconds in which most scripts are over: what they write goes with the news of their end, in one piece
SHORTEST_PAUSE = 0.001  # seconds between two frames of a script: each costs the worker more than its bytes
PAYLOAD_IN_ENVIRONMENT = 100000  # one string of an environment may have 128 KiB
CLEANING_DEADLINE = 5.0  # seconds for killed processes, and what they held, to go away
CPU_CHECK = 0.5  # seconds between two looks at how much of its CPU time a script has used
MOST_ENTRIES = 1000000  # removed in one round
MOST_LEVELS = 200  # of directories kept open at once
NUMBERS = itertools.count()
LARGEST_PID = 64  # the runner is one of the first processes of its own process namespace, or refuses to kill

# What many scripts import, and what costs those that do not next to nothing: a module that the runner has imported is there in
# each child, for a few pages more. None that would do something in every child, as random and threading do.
USUAL_MODULES = ["csv", "dataclasses", "datetime", "decimal", "hashlib", "math", "pathlib", "typing"]

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

libc = ctypes.CDLL(None, use_errno=True)


class Eof(Exception):
    """The worker is gone."""


class Unclean(Exception):
    """Something of a script is left and cannot be removed."""


class Unprotected(Exception):
    """The system calls that scripts may not make cannot be refused here."""


class Filter(ctypes.Structure):
    """A seccomp program: how many instructions of eight bytes, and where."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


# -- bytes ---------------------------------------------------------------------------------------------------------------


def read_exactly(descriptor, length):
    parts = []
    while length:
        part = os.read(descriptor, min(length, 1048576))
        if not part:
            raise Eof
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def write_all(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# -- the child: becomes the script ------------------------------------------------------------------------------------------


def become_script(config, script, last):
    """Drop every right, wait for a request, and return what is to be run: (path, code, payload).

    All that needs no request is done before one comes, so that a script starts the sooner.
    last: no descriptor has a higher number.
    """
    prepare(config, script, last)
    try:
        header = read_exactly(FROM_WORKER, HEADER.size)
        os.write(script.child_told, header)
        environment, code, payload = read_body(HEADER.unpack(header)[2])
    except Eof:
        os._exit(0)
    os.write(script.child_told, b".")

    # Not before the request is read: whatever its size, what it takes to read it is not the script's fault.
    os.close(FROM_WORKER)
    os.close(script.child_told)
    for limit, value in config["limits"]:
        lower_limit(limit, value)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # its own /proc/self is the script's to read

    path, file_of_payload = sys.argv
    for name, data in ((path, code), (file_of_payload, payload)):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        write_all(descriptor, data)
        os.close(descriptor)
    for variable in environment.split(b"\0")[:-1]:
        name, _, value = variable.partition(b"=")
        os.environb[name] = value
    if len(payload) <= PAYLOAD_IN_ENVIRONMENT and b"\0" not in payload:
        os.environb[b"CONTINUUM_PAYLOAD"] = payload
    return path, code, payload.decode()


def lower_limit(limit, value):
    hard = resource.getrlimit(limit)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(limit, (value, value))


def prepare(config, script, last):
    """Become the script's user in its directory, with its outputs, and nothing else but the way to its request."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    for descriptor, pipe in ((1, script.child_out), (2, script.child_err)):
        os.dup2(pipe, descriptor)
        try:
            os.fchmod(descriptor, 0o622)  # the script's user may open /dev/stdout, to write
        except OSError:
            pass
    below = 2
    for kept in (*sorted((FROM_WORKER, script.child_told)), last + 1):
        os.closerange(below + 1, kept)
        below = kept
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"1000")
        os.close(descriptor)
    except OSError:
        pass
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(config["gid"], config["gid"], config["gid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    os.umask(0o022)

    os.mkdir(config["task_directory"], 0o700)
    os.mkdir(config["work_directory"], 0o700)
    os.chdir(config["work_directory"])
    # Here only: the runner must import nothing of a script's.
    sys.path[:0] = [config["task_directory"]] + config["path"]
    gc.enable()
    # Once through what every script goes through: the pages that this writes to are then the child's own already.
    exec(compile("print(end='')", "<runner>", "exec"), {"__builtins__": __builtins__})


def be_as_a_script_is(config):
    """Make, once for all children, what every script finds around it."""
    os.environ.clear()
    os.environ.update(config["environment"])
    sys.argv[:] = [config["task_directory"] + "/script.py", config["task_directory"] + "/payload.json"]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def read_body(length):
    """The three parts of a request: environment, code, payload."""
    body = read_exactly(FROM_WORKER, length)
    parts = []
    position = 0
    while position < length:
        (size,) = LENGTH.unpack_from(body, position)
        parts.append(body[position + LENGTH.size : position + LENGTH.size + size])
        position += LENGTH.size + size
    return parts


def run_script(script, code, payload):
    """Run a script as `python script.py payload.json` would, and never return."""
    main = type(sys)("__main__")
    main.__dict__.update(__file__=script, __builtins__=__builtins__, payload=payload, __cached__=None)
    sys.modules["__main__"] = main
    try:
        exec(compile(code, script, "exec", dont_inherit=True), main.__dict__)
        exit_code = 0
    except SystemExit as stop:
        exit_code = exit_code_of(stop)
    except BaseException as error:
        exit_code = report(error)
    exit_code = finish(exit_code)
    os._exit(exit_code)


def exit_code_of(stop):
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF if -(2**63) <= stop.code < 2**63 else 0xFF  # as the interpreter has it
    try:
        sys.stderr.write(str(stop.code) + "\n")
    except Exception:
        pass
    return 1


def report(error):
    """Print a traceback that shows the script's own lines only."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == "<runner>":
        trace = trace.tb_next
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except BaseException:
        pass
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def finish(exit_code):
    """What the interpreter does at its end: wait for threads, run exit functions, flush."""
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
    except SystemExit as stop:
        exit_code = exit_code_of(stop)
    except BaseException as error:
        exit_code = report(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed by the script, or its pipe is full of nothing we can mend
            pass
    return exit_code


# -- the parent: watches, kills, wipes ----------------------------------------------------------------------------------------


class Frames:
    """Frames on their way to the worker: in one buffer, which keeps nothing of what passed through."""

    def __init__(self):
        self.buffer = bytearray(FRAME.size + CHUNK)
        self.length = 0

    def put(self, kind, data=b""):
        """Add a frame."""
        if len(self.buffer) - self.length < FRAME.size + len(data):
            self.flush()
        FRAME.pack_into(self.buffer, self.length, kind, len(data))
        begin = self.length + FRAME.size
        self.length = begin + len(data)
        self.buffer[begin : self.length] = data

    def read(self, descriptor):
        """Read what is there, as much as there is room for, to the place of the next frame's data. Return how much, and
        whether more may come."""
        if len(self.buffer) - self.length < FRAME.size + LARGEST_PACKET:
            self.flush()
        begin = end = self.length + FRAME.size
        while len(self.buffer) - end >= LARGEST_PACKET:
            try:
                read = os.readv(descriptor, [memoryview(self.buffer)[end:]])
            except BlockingIOError:
                return end - begin, True
            if not read:
                return end - begin, False
            end += read
        return end - begin, True

    def keep(self, kind, read, kept):
        """Make a frame of the first bytes of what was read, and forget the others."""
        begin = self.length + FRAME.size
        self.buffer[begin + kept : begin + read] = bytes(read - kept)
        if kept:
            FRAME.pack_into(self.buffer, self.length, kind, kept)
            self.length = begin + kept

    def flush(self):
        """Send what there is."""
        if self.length:
            write_all(1, memoryview(self.buffer)[: self.length])
            self.buffer[: self.length] = bytes(self.length)
            self.length = 0


class Output:
    """One of a script's two outputs on its way to the worker, up to the limit."""

    def __init__(self, kind, descriptor, limit):
        self.kind = kind
        self.descriptor = descriptor
        self.left = limit
        self.dropped = 0
        os.set_blocking(descriptor, False)

    def forward(self, frames):
        """Make a frame of what is there; return False at the end of the stream."""
        length, more = frames.read(self.descriptor)
        kept = min(length, self.left)
        frames.keep(self.kind, length, kept)
        self.left -= kept
        self.dropped += length - kept
        return more


class Script:
    """One child, from before its fork until all that it left is gone: its pipes, and what is known of it."""

    def __init__(self):
        self.out, self.child_out = os.pipe()
        self.err, self.child_err = os.pipe()
        self.told, self.child_told = os.pipe()  # the last, and so the highest
        self.pid = 0
        self.whole = False  # it has read its whole request
        self.timed_out = False

    def keep_own_ends(self):
        for descriptor in (self.child_out, self.child_err, self.child_told):
            os.close(descriptor)

    def close(self):
        for descriptor in (self.out, self.err, self.told):
            os.close(descriptor)

    def learn_whether_whole(self):
        """Learn, once it has something to say or is dead, whether it has read its whole request."""
        self.whole = bool(os.read(self.told, 1))


def import_usual_modules():
    for name in USUAL_MODULES:
        try:
            __import__(name)
        except ImportError:  # in an image that lacks it
            pass
    if hasattr(gc, "freeze"):
        gc.freeze()


class Runner:
    def __init__(self, config):
        self.config = config
        self.frames = Frames()
        self.places = [place for place in config["writable"] if os.path.isdir(place)]
        self.usual = {}
        self.usual_use = {}
        self.sockets = Lines("/proc/self/net/unix")
        self.usual_sockets = self.sockets.read()
        self.sigchld = self.watch_children()
        self.counters = {"oom": Counter(*OOM_KILLS), "forks": Counter(*REFUSED_FORKS)}
        if config["cpu_seconds"]:
            self.counters.update(cpu=Counter(*CPU_TIME), runner=Clock())
        self.last = max(map(int, os.listdir("/proc/self/fd")))

    def watch_children(self):
        receiver, sender = os.pipe()
        for descriptor in (receiver, sender):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        return receiver

    def serve(self):
        """Run scripts until the worker is gone. Returns in a forked child only: with what that child is to run."""
        modes = {place: os.stat(place).st_mode for place in self.places}
        self.as_script_user(lambda: [(empty_directory(os.fsencode(place)), make_entry(place)) for place in self.places])
        sizes_with_entry = {place: os.stat(place).st_size for place in self.places if os.listdir(place)}
        self.empty_places()
        self.usual_use = {place: used(place) for place in self.places if os.path.ismount(place)}
        self.usual = {place: (modes[place], os.stat(place).st_size) for place in self.places}
        # As those of a tmpfs do. A place without the entry is one that no script can write to.
        self.sizes_tell = all(size > self.usual[place][1] for place, size in sizes_with_entry.items())
        self.usual_sockets = self.sockets.read()
        first = True
        while True:
            self.wipe()
            self.forget_signals()
            script = Script()
            script.pid = os.fork()
            if script.pid == 0:
                try:
                    return become_script(self.config, script, max(self.last, script.child_told))
                except BaseException as problem:
                    why = "the sandbox could not start the script: %s: %s\n" % (type(problem).__name__, problem)
                    os.write(2, why.encode("utf-8", "replace"))
                    os._exit(1)
            script.keep_own_ends()
            before = self.counted()
            self.frames.put(b"R")
            self.frames.flush()
            if first:  # while the first script runs, so that no start is the later for it
                first = False
                import_usual_modules()
            self.watch(script, before)
            script.close()

    def watch(self, script, before):
        """From a request to the exit frame. before: what the kernel had counted when there was none."""
        timeout, limit, _ = HEADER.unpack(self.wait_for_request(script))
        deadline = time.monotonic() + timeout / 1000
        outputs = {
            descriptor: Output(kind, descriptor, limit) for kind, descriptor in ((b"O", script.out), (b"E", script.err))
        }
        status, usage = self.wait_for_end(script, outputs, deadline, before)
        if not script.whole:
            script.learn_whether_whole()
        if not script.whole and status == 0:
            raise Eof  # which the child has seen
        if self.config["kill_all"]:
            self.kill_everything()
        else:
            kill_group(script.pid)
        for output in outputs.values():
            self.drain(output)
        result = {"status": status, "timed_out": script.timed_out}
        result.update(self.limits_met(before, usage) if status else NO_LIMITS_MET)
        result.update(dropped_output=outputs[script.out].dropped, dropped_error=outputs[script.err].dropped)
        self.frames.put(b"X", json.dumps(result).encode())
        self.frames.flush()
        if not script.whole:
            raise Unclean("a request was not read to its end, and what is left of it would be taken for the next")

    def wait_for_request(self, script):
        """The head of the next request, which the child passes on. A child that dies before (a host short of memory kills it
        among the first) costs no task its attempt: nobody is asked to run it."""
        header = os.read(script.told, HEADER.size)
        if header:
            return header
        _, status = os.waitpid(script.pid, 0)
        if status == 0:
            raise Eof  # which the child has seen
        os.set_blocking(script.err, False)
        try:
            why = os.read(script.err, 1000).decode("utf-8", "replace")
        except BlockingIOError:
            why = ""
        raise Unclean("the process for the next script was killed, or ended: %s" % (why or status))

    def wait_for_end(self, script, outputs, deadline, before):
        """Forward output until the child has ended, killing it when its time is up or the worker is gone. Return its status and
        usage."""
        children = select.poll()
        children.register(self.sigchld, select.POLLIN)
        children.poll(min(AT_ONCE, max(0, deadline - time.monotonic())) * 1000)
        poll = select.poll()
        for descriptor in (self.sigchld, script.told, *outputs):
            poll.register(descriptor, select.POLLIN)
        forwarded = 0.0
        killed = False
        while True:
            ended = reap(script.pid)
            if ended is not None:
                return ended
            left = deadline - time.monotonic()
            if not killed and (left <= 0 or self.out_of_cpu_time(before)):
                killed, script.timed_out = True, left <= 0
                os.kill(script.pid, signal.SIGKILL)
            patience = max(0, left) * 1000 + 1
            if self.config["cpu_seconds"]:
                patience = min(patience, CPU_CHECK * 1000)
            for descriptor, _ in poll.poll(None if killed else patience):
                if descriptor == FROM_WORKER:
                    if not os.read(FROM_WORKER, 1):
                        raise Eof
                    raise Unclean("the worker spoke out of turn")
                if descriptor == script.told:
                    poll.unregister(script.told)
                    script.learn_whether_whole()
                    if script.whole:  # now nothing may come from the worker but its end
                        poll.register(FROM_WORKER, select.POLLIN)
                    continue
                if descriptor == self.sigchld:
                    self.forget_signals()
                    continue
                if time.monotonic() - forwarded < SHORTEST_PAUSE:
                    children.poll(SHORTEST_PAUSE * 1000)
                if not outputs[descriptor].forward(self.frames):
                    poll.unregister(descriptor)
                self.frames.flush()
                forwarded = time.monotonic()

    def forget_signals(self):
        try:
            os.read(self.sigchld, 4096)
        except BlockingIOError:
            pass

    def drain(self, output):
        """Forward what is still in the pipe, which holds no more than its capacity: every writer is dead."""
        poll = select.poll()
        poll.register(output.descriptor, select.POLLIN)
        while poll.poll(0):
            if not output.forward(self.frames):
                return

    def kill_everything(self):
        """Kill every process of this sandbox but this one (and the first of the namespace), and see them gone."""
        deadline = time.monotonic() + CLEANING_DEADLINE
        while True:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                reap(None)
                return
            reap(None)
            if time.monotonic() > deadline:
                raise Unclean("processes of a script do not die")
            time.sleep(0.0002)

    def counted(self):
        """What the kernel has counted of this sandbox up to now."""
        return {name: counter.read() for name, counter in self.counters.items()}

    def out_of_cpu_time(self, before):
        """Whether the script, all its processes together, has used more CPU time than it may."""
        limit = self.config["cpu_seconds"]
        if not limit:
            return False
        return self.counters["cpu"].read() - before["cpu"] - (time.process_time() - before["runner"]) >= limit

    def limits_met(self, before, usage):
        """Which limits a script met that did not end well, as far as can be told."""
        now = self.counted()
        # The kernel's own limit, of one process, goes by the clock's ticks, and this by the exact time.
        alone = usage.ru_utime + usage.ru_stime > 0.8 * self.config["cpu_seconds"] > 0
        return {
            "out_of_cpu_time": alone or self.out_of_cpu_time(before),
            "oom": now["oom"] > before["oom"],
            "too_many_processes": now["forks"] > before["forks"] if self.counters["forks"].exists else None,
            "full": [place for place in self.places if is_full(place)],
        }

    def wipe(self):
        """Empty every writable place, first as the script's user, who owns what is there."""
        self.remove_task_files()
        # Names must not be read into this process, of which the next script's is a copy. A directory's size tells
        # without them where it can, and what it might fail to tell ends the sandbox.
        if not self.sizes_tell or not self.are_usual():
            for place, (mode, _) in self.usual.items():
                if os.stat(place).st_mode != mode:  # which a script may change where it is of the runner's user
                    os.chmod(place, mode & 0o7777)
            self.empty_places()
            for place in self.places:
                if os.listdir(place):
                    raise Unclean(place + " is not empty")
        if self.config["uid"] is None:
            for place in self.places:
                os.utime(place)
        self.see_that_nothing_is_held()

    def are_usual(self):
        """Whether every writable place has the mode and the size that it had when it was empty."""
        for place, usual in self.usual.items():
            now = os.stat(place)
            if (now.st_mode, now.st_size) != usual:
                return False
        return True

    def empty_places(self):
        places = list(map(os.fsencode, self.places))
        self.as_script_user(lambda: list(map(empty_directory, places)))

    def see_that_nothing_is_held(self):
        """See gone what has no name and no process any more: sockets that are in flight through each other, and the files
        and sockets that are in flight with them. The kernel closes them when it collects its garbage."""
        deadline = time.monotonic() + CLEANING_DEADLINE
        while self.sockets.read() > self.usual_sockets or self.held():
            if time.monotonic() > deadline:
                raise Unclean("a script's files or sockets are in flight where nobody can close them")
            for end in _socket.socketpair():  # which the kernel does whenever one is closed
                end.close()
            time.sleep(0.001)

    def held(self):
        """Whether a writable place has less room than when it was empty."""
        for place, (usual_files, usual_blocks) in self.usual_use.items():
            files, blocks = used(place)
            if files > usual_files or blocks > usual_blocks:
                return True
        return False

    def remove_task_files(self):
        """The quick way for what each script has; what else there is comes to light afterwards."""
        config = self.config
        for remove, path in (
            (os.unlink, config["task_directory"] + "/script.py"),
            (os.unlink, config["task_directory"] + "/payload.json"),
            (os.rmdir, config["task_directory"]),
            (os.rmdir, config["work_directory"]),
        ):
            try:
                remove(path)
            except OSError:
                pass

    def as_script_user(self, action):
        """Do something in a forked process with the rights of the script's user; wait for its end."""
        pid = os.fork()
        if pid == 0:
            try:
                if self.config["uid"] is not None:
                    os.setgroups([])
                    os.setresgid(self.config["gid"], self.config["gid"], self.config["gid"])
                    os.setresuid(self.config["uid"], self.config["uid"], self.config["uid"])
                action()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


def reap(pid):
    """Collect every child that has ended; return (wait status, usage) of `pid` if it was among them."""
    found = None
    while True:
        try:
            ended, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if ended == 0:
            return found
        if ended == pid:
            found = (status, usage)


def kill_group(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


# What the kernel counts of a control group, of version 2 or else of version 1: a file, a key in it, and the unit.
CONTROL_GROUP = "/sys/fs/cgroup/"
OOM_KILLS = (("memory.events", b"oom_kill", 1), ("memory/memory.oom_control", b"oom_kill", 1))
REFUSED_FORKS = (("pids.events", b"max", 1), ("pids/pids.events", b"max", 1))
CPU_TIME = (("cpu.stat", b"usage_usec", 1e-6), ("cpuacct/cpuacct.usage", b"", 1e-9))
NO_LIMITS_MET = {"out_of_cpu_time": False, "oom": False, "too_many_processes": False, "full": []}


class Counter:
    """A number in the first of some files that is there; zero when none is."""

    def __init__(self, *files):
        self.exists = False
        for path, self.key, self.unit in files:
            try:
                self.descriptor = os.open(CONTROL_GROUP + path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            self.exists = True
            break

    def read(self):
        if self.exists:
            for line in os.pread(self.descriptor, 4096, 0).splitlines():
                key, _, value = line.rpartition(b" ")
                if key == self.key:
                    return int(value) * self.unit
        return 0


class Lines:
    """How many lines a file of the kernel's has; none when it is not there."""

    def __init__(self, path):
        self.buffer = bytearray(65536)
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.descriptor = None

    def read(self):
        if self.descriptor is None:
            return 0
        length = os.preadv(self.descriptor, [self.buffer], 0)
        count = self.buffer.count(b"\n", 0, length)
        self.buffer[:length] = bytes(length)  # names of a script's sockets
        return count


class Clock:
    """The CPU time of the runner itself."""

    def read(self):
        return time.process_time()


def used(place):
    """(files, blocks) that a file system holds."""
    state = os.statvfs(place)
    return state.f_files - state.f_ffree, state.f_blocks - state.f_bfree


def is_full(place):
    """Whether a file system has no room for another file, or for another byte."""
    state = os.statvfs(place)
    return (state.f_blocks > 0 and state.f_bavail == 0) or (state.f_files > 0 and state.f_favail == 0)


def make_entry(place):
    try:
        os.close(os.open(place + "/entry", os.O_CREAT | os.O_WRONLY))
    except OSError:  # where this cannot be, nothing of a script's can
        pass


def empty_directory(top):
    """Remove everything below a directory, as long as that makes progress."""
    while os.listdir(top) and remove_below(top):
        pass


def remove_below(top):
    """Remove what is below a directory: any name, any mode, any depth, without following links. Return how much."""
    changed = 0
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    stack = [(descriptor, b"", iter(os.listdir(descriptor)))]
    while stack and changed < MOST_ENTRIES:
        here, own_name, names = stack[-1]
        below = None
        for name in map(os.fsencode, names):
            try:
                if not stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=here)
                    changed += 1
                    continue
                os.chmod(name, 0o700, dir_fd=here)
                if len(stack) < MOST_LEVELS:
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
                    break
                # Too deep to keep every level open: bring the subtree up; the next round finds it there.
                new_name = b"deep-%d-%d" % (os.getpid(), next(NUMBERS))
                os.rename(name, new_name, src_dir_fd=here, dst_dir_fd=stack[0][0])
                changed += 1
            except OSError:
                continue
        if below is not None:
            stack.append((below, name, iter(os.listdir(below))))
            continue
        stack.pop()
        os.close(here)
        if stack:
            try:
                os.rmdir(own_name, dir_fd=stack[-1][0])
                changed += 1
            except OSError:
                pass  # something in it cannot be removed; what is beside it can
    for descriptor, _, _ in stack:
        os.close(descriptor)
    return changed


def refuse_system_calls(config):
    """Give up, for good and for every child, the system calls that no script may make."""
    machine = os.uname().machine if sys.maxsize > 2**32 else "an interpreter of 32 bits"
    if machine not in config["machines"]:
        raise Unprotected("there is no seccomp filter for " + machine)
    # Of one byte: no core fits, and no program of the host is started for one, which 0 would not prevent. It stays: the filter
    # makes nothing of any later change.
    lower_limit(resource.RLIMIT_CORE, 1)
    program = bytes.fromhex(config["seccomp"])
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(program) // 8, program)), 0, 0):
        raise Unprotected("the kernel takes no seccomp filter: " + os.strerror(ctypes.get_errno()))


def say_fatal(why):
    data = why.encode("utf-8", "replace")[:2000]
    write_all(1, FRAME.pack(b"F", len(data)) + data)


def leave(code):
    """End the runner, and everything else in its sandbox."""
    if config["kill_all"]:
        try:
            os.kill(-1, signal.SIGKILL)
        except OSError:
            pass
    os._exit(code)


# A script's stdin is in its place from the start; the worker's end of ours has a number of its own.
FROM_WORKER = os.dup(0)
null = os.open("/dev/null", os.O_RDONLY)
os.dup2(null, 0)
os.close(null)
config = json.loads(read_exactly(FROM_WORKER, LENGTH.unpack(read_exactly(FROM_WORKER, LENGTH.size))[0]).decode())
config["limits"] = [(getattr(resource, name), value) for name, value in config["limits"].items()]
if config["kill_all"] and os.getpid() > LARGEST_PID:
    say_fatal("the runner is not in a process namespace of its own; it would kill the host's processes")
    os._exit(70)
libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
for number in (signal.SIGPIPE, signal.SIGINT):  # the second is for a script of the same user, which might interrupt
    signal.signal(number, signal.SIG_IGN)
os.umask(0)
be_as_a_script_is(config)
gc.collect()
gc.disable()
if hasattr(gc, "freeze"):
    gc.freeze()
try:
    refuse_system_calls(config)
    what = Runner(config).serve()
except (Eof, BrokenPipeError):
    leave(0)
except BaseException as problem:
    try:
        say_fatal("%s: %s" % (type(problem).__name__, problem))
    except OSError:
        pass
    leave(70)
run_script(*what)
