"""What a task leaves behind for the next one in the same sandbox: processes and files."""

from __future__ import annotations

from tests.attacks.attack import Attack

_NAME = "libc.prctl(15, b'l1ngerer', 0, 0, 0)\n"
_FIND_PROCESS = """
found = []
for _ in range(20):
    for pid in other_processes():
        try:
            if open("/proc/%d/comm" % pid).read().strip() == "l1ngerer": found.append(pid)
        except OSError: pass
    if found: break
    time.sleep(0.01)
if found: succeeded("process %s is still there" % found[0])
stopped("no such process")
"""


def _process(name: str, wants: str, code: str, timeout: float = 5.0) -> Attack:
    """A process that is to outlive its task; `linger` is what it does."""
    return Attack(
        name=name,
        wants=wants,
        code="def linger():\n    " + _NAME + "    time.sleep(30)\n" + code,
        aftermath=_FIND_PROCESS,
        timeout=timeout,
    )


def _file(name: str, wants: str, code: str, look: str, needs: str = "") -> Attack:
    """Something in a file system. look: an expression that is true where it is found."""
    return Attack(
        name=name,
        wants=wants,
        code=code,
        aftermath=f"found = {look}\nif found: succeeded('found %r' % (found,))\nstopped('nothing was found')",
        needs=needs,
    )


PROCESSES = (
    _process("leave-child", "a child process to outlive it", "if os.fork() == 0: linger()"),
    _process("leave-daemon", "a daemon, forked twice in a session of its own", "daemon(linger)\ntime.sleep(0.1)"),
    _process(
        "leave-deaf-process",
        "a process that ignores every signal it can",
        """
def deaf():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    linger()
daemon(deaf)
time.sleep(0.1)
""",
    ),
    _process(
        "leave-stopped-process",
        "a process that stands still",
        "def still():\n    "
        + _NAME
        + """    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(30)
daemon(still)
time.sleep(0.1)
""",
    ),
    _process(
        "leave-process-after-timeout",
        "a daemon to outlive the task's own end by timeout",
        "daemon(linger)\ntime.sleep(30)",
        timeout=0.5,
    ),
    _process(
        "leave-process-after-crash",
        "a daemon to outlive the task's own end by a signal",
        "daemon(linger)\ntime.sleep(0.1)\nos.kill(os.getpid(), signal.SIGSEGV)",
    ),
    _process(
        "leave-forking-process",
        "a process that forks faster than it can be killed",
        """
def rabbit():
    while True:
        if os.fork():
            os._exit(0)
        libc.prctl(15, b"l1ngerer", 0, 0, 0)
        signal.alarm(10)
daemon(rabbit)
time.sleep(0.1)
""",
    ),
    _process(
        "leave-vfork-sleeper",
        "a process whose parent waits in the kernel for it",
        """
def sleeper():
    libc.prctl(15, b"l1ngerer", 0, 0, 0)
    os.posix_spawn("/bin/sleep", ["l1ngerer", "30"], {})
    time.sleep(30)
daemon(sleeper)
time.sleep(0.1)
""",
    ),
)

FILES = (
    _file(
        "leave-file-in-tmp",
        "a file in /tmp, with a name that is easily overlooked",
        "open('/tmp/.left', 'w').close()",
        "[name for name in os.listdir('/tmp') if name == '.left']",
    ),
    _file(
        "leave-file-in-work-directory",
        "a file where the next task works",
        "open('left', 'w').close()",
        "[name for name in os.listdir('.') if name == 'left']",
    ),
    _file(
        "leave-file-in-shared-memory",
        "a POSIX shared memory object",
        "open('/dev/shm/left', 'w').close()",
        "[name for name in os.listdir('/dev/shm') if name == 'left']",
    ),
    _file(
        "leave-odd-files",
        "fifos, sockets, links and names that are no text",
        r"""
for place in (b"/tmp", b"/dev/shm", b"/sandbox"):
    os.chdir(place)
    os.mkfifo(b"left fifo")
    socket.socket(socket.AF_UNIX).bind("left socket")
    os.symlink(b"/", b"left link")
    open(b"left \xff\xfe\n", "w").close()
    open(b"-rf left", "w").close()
""",
        "[name for place in ('/tmp', '/dev/shm', '/sandbox') for name in os.listdir(place) if 'left' in name]",
    ),
    _file(
        "leave-closed-directories",
        "directories that nobody may enter",
        """
for place in ("/tmp", "/dev/shm", "/sandbox"):
    os.makedirs(place + "/left/below/below")
    open(place + "/left/below/file", "w").close()
    os.chmod(place + "/left/below", 0)
    os.chmod(place + "/left", 0)
""",
        "[place for place in ('/tmp', '/dev/shm', '/sandbox') if os.path.exists(place + '/left')]",
    ),
    _file(
        "leave-deep-directories",
        "directories deeper than a path can be long",
        """
os.chdir("/tmp")
for _ in range(400):
    os.mkdir("left" * 50)
    os.chdir("left" * 50)
""",
        "[name[:8] for name in os.listdir('/tmp')]",
    ),
    _file(
        "leave-many-files",
        "so many files that the clean-up gives up",
        "os.mkdir('/tmp/left')\nfor number in range(3000): open('/tmp/left/%d' % number, 'w').close()",
        "os.path.exists('/tmp/left')",
    ),
    _file(
        "leave-immutable-file",
        "a file that nobody can remove",
        """
descriptor = os.open("/tmp/left", os.O_CREAT | os.O_RDWR)
flags = ctypes.c_long(0)
checked(libc.ioctl(descriptor, 0x80086601, ctypes.byref(flags)), "FS_IOC_GETFLAGS")
flags.value |= 0x10
checked(libc.ioctl(descriptor, 0x40086602, ctypes.byref(flags)), "FS_IOC_SETFLAGS")
""",
        "os.path.exists('/tmp/left')",
    ),
    _file(
        "swap-work-directory",
        "the next task to work in a place of its choice",
        """
os.mkdir("/tmp/elsewhere")
os.rename("/sandbox/work", "/sandbox/gone")
os.symlink("/tmp/elsewhere", "/sandbox/work")
""",
        "os.path.islink('/sandbox/work') and os.readlink('/sandbox/work')",
    ),
    _file(
        "shadow-module",
        "a module of its own in place of the standard library's, for the next task to import",
        "open('/sandbox/task/colorsys.py', 'w').write('EVIL = True')",
        "getattr(__import__('colorsys'), 'EVIL', False)",
    ),
    _file(
        "plant-start-up-code",
        "code that every interpreter started here runs (a .pth file, usercustomize)",
        """
import site
planted = 0
for folder in {*site.getsitepackages(), site.getusersitepackages(), *filter(os.path.isdir, sys.path)}:
    for name, text in (("evil.pth", "import os; os.environ['EVIL'] = '1'"),
                       ("usercustomize.py", "import os; os.environ['EVIL'] = '1'")):
        try:
            os.makedirs(folder, exist_ok=True)
            with open(folder + "/" + name, "w") as file: file.write(text + "\\n")
            planted += 1
        except OSError: pass
""",
        "subprocess.run([sys.executable, '-c', \"import os; print(os.environ.get('EVIL', ''))\"], capture_output=True,"
        " text=True).stdout.strip()",
    ),
    _file(
        "plant-command",
        "a program of its own on the next task's PATH",
        """
for folder in os.environ.get("PATH", "/usr/local/bin").split(":"):
    try:
        with open(folder + "/frobnicate", "w") as file: file.write("#!/bin/sh\\necho evil\\n")
        os.chmod(folder + "/frobnicate", 0o755)
    except OSError: pass
""",
        "__import__('shutil').which('frobnicate')",
    ),
    _file(
        "plant-scheduled-job",
        "a job that a scheduler runs later",
        """
for path in ("/etc/cron.d/left", "/var/spool/cron/crontabs/root", "/etc/rc.local", "/etc/profile.d/left.sh"):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file: file.write("* * * * * root true\\n")
    except OSError: pass
""",
        "[path for path in ('/etc/cron.d/left', '/var/spool/cron/crontabs/root', '/etc/rc.local',"
        " '/etc/profile.d/left.sh') if os.path.exists(path)]",
    ),
    _file(
        "plant-in-home",
        "start-up files in the home directory",
        "for name in ('.profile', '.bashrc', '.netrc', '.pythonrc.py'):\n"
        "    open(os.path.expanduser('~/' + name), 'w').close()\n",
        "[name for name in os.listdir(os.path.expanduser('~')) if name in ('.profile', '.netrc')]",
    ),
)

ATTACKS = (*PROCESSES, *FILES)
