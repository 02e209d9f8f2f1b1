"""What every attacking script begins with: a check that it is in a sandbox, and the words of its trade.

This text is sent into sandboxes. It refuses to go on anywhere else, so that a script that strays does nothing.
"""

PRELUDE = r'''
import ctypes, errno, fcntl, json, mmap, os, platform, re, resource, select, signal, socket, stat, struct, subprocess
import sys, threading, time

with open("/proc/1/cmdline", "rb") as file:
    if socket.gethostname() != "sandbox" or b"-c\0" not in file.read():
        raise SystemExit("this is not a sandbox, and no place for an attack")

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
WORLD = json.loads(payload)
VICTIM, WORKER = WORLD["victim_mark"], WORLD["worker_mark"]
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
AT_FDCWD = -100
_ARM = platform.machine() == "aarch64"
NUMBERS = {
    name: numbers[_ARM]
    for name, numbers in {
        "ptrace": (101, 117), "syslog": (103, 116), "modify_ldt": (154, 9999), "pivot_root": (155, 41),
        "acct": (163, 89), "personality": (135, 92), "adjtimex": (159, 171), "init_module": (175, 105),
        "iopl": (172, 9999), "kcmp": (312, 272), "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97),
        "setns": (308, 268), "process_vm_readv": (310, 270), "bpf": (321, 280), "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
        "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428), "fsopen": (430, 430),
        "fanotify_init": (300, 262), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "memfd_create": (319, 279),
        "clone": (56, 220), "clone3": (435, 435), "prlimit64": (302, 261), "capset": (126, 91), "capget": (125, 90),
        "swapon": (167, 224), "quotactl": (179, 60), "seccomp": (317, 277), "mbind": (237, 235), "shmget": (29, 194),
        "move_pages": (279, 239), "vhangup": (153, 58), "process_madvise": (440, 440), "mount_setattr": (442, 442),
    }.items()
}


def succeeded(evidence):
    print("SUCCEEDED:", str(evidence).replace("\n", " ")[:300], flush=True)
    raise SystemExit(0)


def stopped(why):
    print("STOPPED:", str(why).replace("\n", " ")[:300], flush=True)
    raise SystemExit(0)


def _report(kind, error, trace):
    if isinstance(error, OSError):
        print("STOPPED:", type(error).__name__, str(error).replace("\n", " ")[:300], flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report


def checked(result, what=""):
    """The result of a C function, or the error that it set."""
    if result is None or result == ctypes.c_void_p(-1).value or result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number) + (" in " + what if what else ""))
    return result


def syscall(name, *arguments):
    whole = [ctypes.c_long(each) if type(each) is int else each for each in arguments]
    return checked(libc.syscall(NUMBERS[name], *whole), name)


def mount(source, target, kind, flags=0, data=None):
    given = [text.encode() if isinstance(text, str) else text for text in (source, target, kind)]
    return syscall("mount", *given, flags, data.encode() if data else None)


def new_directory():
    """An empty directory of this process's own."""
    path = "/tmp/directory-%d" % os.getpid()
    os.mkdir(path)
    return path


def device_node(kind, major, minor):
    """A new device node, where devices work if there is such a place."""
    for folder in ("", "/dev", "/run", "/tmp"):
        path = "%s/node-%d-%d" % (folder, major, minor)
        try:
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
            return path
        except OSError as error:
            why = error
    raise why


def remount_writable(path):
    """Make a read-only place writable again; where it is no mount of its own, do nothing."""
    for flags in (MS_REMOUNT | MS_BIND, *([MS_REMOUNT] if path == "/sys" else [])):
        try:
            mount(None, path, None, flags)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise


def write_back(path):
    """Write to a file what it holds already. Nothing changes, and that it could has been shown."""
    with open(path, "rb", 0) as file:
        held = file.read(4096)
    with open(path, "wb", 0) as file:
        file.write(held)
    succeeded("%s can be written: %r" % (path, held[:60]))


def drop(uid=65532):
    """Become an ordinary user, where the script is not one already."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def in_child(action, seconds=3.0):
    """Do something in a forked process; what it returns or raises (an OSError) is the caller's."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = ["done", action()]
        except OSError as error:
            answer = ["error", error.errno, error.strerror or str(error)]
        except BaseException as error:
            answer = ["error", 0, repr(error)]
        os.write(sender, json.dumps(answer, default=str).encode())
        os._exit(0)
    os.close(sender)
    readable, _, _ = select.select([receiver], [], [], seconds)
    data = os.read(receiver, 65536) if readable else b""
    os.close(receiver)
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
    os.waitpid(pid, 0)
    if not data:
        raise OSError(errno.EPERM, "the child process ended without an answer")
    answer = json.loads(data)
    if answer[0] == "error":
        raise OSError(answer[1], answer[2])
    return answer[1]


def daemon(action):
    """Run something in a process that nobody waits for, which ends by itself in a while."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.alarm(30)
            try:
                action()
            finally:
                os._exit(0)
        os._exit(0)


def own_pids():
    pid, found = os.getpid(), set()
    while pid > 1:
        found.add(pid)
        try:
            pid = int(open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found | {1}


def other_processes():
    """Process ids of everybody but this script, its ancestors and the first."""
    return sorted(set(map(int, filter(str.isdigit, os.listdir("/proc")))) - own_pids())


def first_mark(mark, value):
    """What a string or bytes hold that begins with a mark; empty for none, and for everything else."""
    if type(value) is str:
        value = value.encode("utf-8", "replace")
    found = re.search(mark.encode() + rb"-[0-9a-z-]+", value) if type(value) is bytes else None
    return found.group().decode() if found else ""


def search(mark, texts):
    """The first text (of pairs of a place and its bytes) that holds something with a mark."""
    for place, data in texts:
        found = first_mark(mark, data)
        if found:
            succeeded("%s holds %s" % (place, found))
    stopped("nothing of the kind is in sight")


def contents(paths):
    for path in paths:
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                with open(path, "rb") as file:
                    yield path, file.read(1 << 20)
        except (OSError, ValueError):
            pass


def files_below(*tops, depth=4, most=3000):
    skipped = {"/proc", "/sys", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/dev/fd", "/nix"}
    left = [(top, 0) for top in tops]
    count = 0
    while left and count < most:
        top, level = left.pop(0)
        try:
            entries = list(os.scandir(top))
        except OSError:
            continue
        for entry in entries:
            count += 1
            try:
                if entry.is_dir(follow_symlinks=False):
                    if level < depth and entry.path not in skipped:
                        left.append((entry.path, level + 1))
                else:
                    yield entry.path
            except OSError:
                pass


def shifted_memory(mark):
    """Whether this process's memory holds a mark, every byte of which is compared one higher than it is, so that
    the search is not what it finds. Gives the place."""
    higher = bytes((byte + 1) % 256 for byte in range(256))
    wanted = re.compile(bytes(byte + 1 for byte in (mark + "-").encode()) + rb"[1-:b-{.]{8,}")
    with open("/proc/self/maps") as file:
        places = [line.split() for line in file]
    with open("/proc/self/mem", "rb", 0) as memory:
        for place in places:
            if place[1].startswith("rw") and place[-1] not in ("[vvar]", "[vsyscall]"):
                start, end = (int(number, 16) for number in place[0].split("-"))
                try:
                    memory.seek(start)
                    content = memory.read(min(end - start, 64 << 20))
                except (OSError, ValueError, OverflowError):
                    continue
                found = wanted.search(content.translate(higher))
                if found:
                    return "%s: %s" % (place[0], bytes(byte - 1 for byte in found.group()).decode())
    return ""
'''

VICTIM_SCRIPT = r"""
import ctypes, os, socket, threading, time
mark = VICTIM_MARK + "-" + "neighbour"
for place in ("/tmp", "/dev/shm", os.getcwd()):
    with open(place + "/neighbour-" + str(os.getpid()), "w") as file:
        file.write(mark + "-file")
    os.chmod(file.name, 0o666)
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0x5EC2E7, 4096, 0o1666)
if segment >= 0:
    address = libc.shmat(segment, None, 0)
    if address != ctypes.c_void_p(-1).value:
        ctypes.memmove(address, (mark + "-shm").encode(), len(mark) + 4)
servers = [socket.socket(socket.AF_UNIX), socket.socket()]
servers[0].bind("\0neighbour")
servers[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
servers[1].bind(("127.0.0.1", 7777))

def serve(server):
    server.listen(5)
    while True:
        connection, _ = server.accept()
        connection.sendall((mark + "-socket").encode())
        connection.close()

for server in servers:
    threading.Thread(target=serve, args=(server,), daemon=True).start()
if os.fork() == 0:
    # What ps shows, and what environ shows, is as an exec left it.
    os.execve("/proc/self/exe", ["python3", "-c", "import time; time.sleep(600)", mark + "-argument"],
              {"SECRET": mark + "-environment"})
print("here", flush=True)
time.sleep(600)
"""
"""The other tenant: an ordinary task that has a secret wherever a program may have one."""
