"""Ways up: from the sandbox's user to root, or to a single right of root's."""

from __future__ import annotations

from tests.attacks.attack import Attack

_CAPABILITIES = """
def capabilities():
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(24)
    syscall("capget", header, data)
    return header, list(struct.unpack("6I", data.raw))

def set_capabilities(bits, inheritable=0):
    header, _ = capabilities()
    syscall("capset", header, struct.pack("6I", bits, bits, inheritable, 0, 0, 0))
"""

ATTACKS = (
    Attack(
        name="become-root",
        wants="user id 0",
        code="os.setresuid(0, 0, 0)\nsucceeded('user id is %d' % os.geteuid())",
    ),
    Attack(
        name="become-root-group",
        wants="the groups of root",
        code="os.setgid(0)\nos.setgroups([0])\nsucceeded('groups are %s' % os.getgroups())",
    ),
    Attack(
        name="setuid-programs",
        wants="root through a program that has the setuid bit, such as su or mount",
        code="""
drop()
folders = {os.path.realpath(folder) for folder in ("/bin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/libexec")}
programs = [
    entry.path for folder in folders if os.path.isdir(folder) for entry in os.scandir(folder)
    if entry.is_file(follow_symlinks=False) and entry.stat().st_mode & stat.S_ISUID
]
if not programs: stopped("there is no such program")
for program in sorted(programs):
    # Its output has no room, so that it stands still once it runs, and can be looked at.
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    try:
        while True: os.write(sender, b"x" * 4096)
    except BlockingIOError: pass
    os.set_blocking(sender, True)
    started = subprocess.Popen([program, "--help"], stdin=subprocess.DEVNULL, stdout=sender, stderr=sender)
    deadline = time.monotonic() + 1.0
    uids = []
    while time.monotonic() < deadline and started.poll() is None:
        with open("/proc/%d/status" % started.pid) as file:
            facts = dict(line.split(":", 1) for line in file)
        uids = facts["Uid"].split()
        running = facts["Name"].strip() == os.path.basename(program)[:15]
        if "0" in uids or (running and facts["State"].split()[0] == "S"): break
        time.sleep(0.005)
    try:
        started.kill()
    except OSError: pass
    os.close(receiver); os.close(sender)
    if "0" in uids: succeeded("%s ran with user ids %s" % (program, uids))
stopped("of %d programs none ran as root" % len(programs))
""",
    ),
    Attack(
        name="sudo",
        wants="root through sudo, doas or pkexec",
        code="""
for command in (["sudo", "-n", "id", "-u"], ["doas", "-n", "id", "-u"], ["pkexec", "id", "-u"], ["su", "-c", "id -u"]):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=3)
    except (OSError, subprocess.TimeoutExpired):
        continue
    if done.stdout.strip() == b"0": succeeded(command)
stopped("none of them helps")
""",
    ),
    Attack(
        name="new-privileges",
        wants="programs that give rights when they are executed to work at all",
        code="""
allowed = libc.prctl(39, 0, 0, 0, 0) == 0
if allowed: succeeded("no_new_privs is not set")
libc.prctl(38, 0, 0, 0, 0)
if libc.prctl(39, 0, 0, 0, 0) == 0: succeeded("no_new_privs was taken back")
stopped("no_new_privs is set, and stays")
""",
    ),
    Attack(
        name="file-capabilities",
        wants="a program of its own that gives rights to whoever executes it",
        code="""
open("/tmp/program", "w").close()
os.setxattr("/tmp/program", "security.capability", struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFF, 0))
succeeded("security.capability was written")
""",
    ),
    Attack(
        name="setuid-file-of-root",
        wants="a setuid program of its own",
        code="""
open("/tmp/program", "w").close()
os.chown("/tmp/program", 0, 0)
os.chmod("/tmp/program", 0o4755)
what = os.stat("/tmp/program")
if what.st_uid == 0 and what.st_mode & stat.S_ISUID: succeeded(what)
stopped("it stayed with its owner")
""",
    ),
    Attack(
        name="regain-capabilities",
        wants="the rights that its process once had (capset)",
        code=_CAPABILITIES
        + """
set_capabilities(1 << 21 | 1 << 7)
succeeded("capabilities are %s" % capabilities()[1])
""",
    ),
    Attack(
        name="effective-capabilities",
        wants="a right that was left over",
        code=_CAPABILITIES
        + """
_, (effective, permitted, inheritable, *_) = capabilities()
if effective or permitted: succeeded("effective %#x, permitted %#x" % (effective, permitted))
stopped("there are none")
""",
    ),
    Attack(
        name="ambient-capabilities",
        wants="rights that its child processes keep",
        code=_CAPABILITIES
        + """
set_capabilities(1 << 21, 1 << 21)
checked(libc.prctl(47, 2, 21, 0, 0), "PR_CAP_AMBIENT_RAISE")
succeeded(open("/proc/self/status").read().partition("CapAmb:")[2].split()[0])
""",
    ),
    Attack(
        name="capabilities-by-exec",
        wants="its rights back by executing a program",
        code="""
look = "print(open('/proc/self/status').read().partition('CapEff:')[2].split()[0])"
shown = subprocess.run([sys.executable, "-S", "-c", look], capture_output=True, text=True, timeout=4).stdout.strip()
if int(shown or "0", 16): succeeded("the new program has %s" % shown)
stopped("the new program has no more")
""",
    ),
    Attack(
        name="secure-bits",
        wants="the special role of user id 0 changed to its liking",
        code="checked(libc.prctl(28, 0x10, 0, 0, 0), 'PR_SET_SECUREBITS')\nsucceeded('the bits were set')",
    ),
    Attack(
        name="passwd-file",
        wants="a new user with id 0",
        code="""
with open("/etc/passwd", "a") as file:
    file.write("toor::0:0::/:/bin/sh\\n")
succeeded("/etc/passwd was written")
""",
    ),
    Attack(
        name="shadow-file",
        wants="the passwords of this system",
        code="succeeded('read %r' % open('/etc/shadow').read(40))",
    ),
    Attack(
        name="preload-library",
        wants="a library of its own in every program that starts here",
        code="open('/etc/ld.so.preload', 'a').close()\nsucceeded('/etc/ld.so.preload was written')",
    ),
    Attack(
        name="write-to-root-directory",
        wants="to write anywhere in the system",
        code="""
for folder in ("/", "/etc", "/usr", "/usr/local/bin", "/var", "/run", "/root", "/home", "/opt", "/dev", "/srv"):
    try:
        with open(folder + "/written", "w"):
            succeeded(folder)
    except OSError as error:
        why = error
stopped(why)
""",
    ),
    Attack(
        name="priority",
        wants="to be scheduled before everybody else",
        code="os.nice(-5)\nsucceeded('nice is %d' % os.nice(0))",
        open_on={"runsc": "gVisor lets a priority be set, and gives it no meaning"},
    ),
    Attack(
        name="real-time-class",
        wants="a real-time class that starves everybody else",
        code="""
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
policy = os.sched_getscheduler(0)
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
succeeded("policy was %d" % policy)
""",
        needs="real-time groups with a budget",
    ),
)
