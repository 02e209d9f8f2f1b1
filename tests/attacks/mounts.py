"""Another view of the file systems: what is mounted, covered, read-only or beyond the root directory."""

from __future__ import annotations

from tests.attacks.attack import Attack

ATTACKS = (
    Attack(
        name="mount-tmpfs",
        wants="cover a directory with a file system of its own, as it once covered a host's /tmp",
        code="""
place = new_directory()
mount("none", place, "tmpfs")
succeeded(open("/proc/self/mountinfo").read().splitlines()[-1])
""",
    ),
    Attack(
        name="mount-proc",
        wants="a second /proc, without what is masked and read-only in the first",
        code="""
place = new_directory()
mount("proc", place, "proc")
succeeded("mounted; sysrq, keys and sys are there: %d entries" % len(os.listdir(place)))
""",
    ),
    Attack(
        name="mount-sysfs",
        wants="a writable /sys",
        code="""
place = new_directory()
mount("sysfs", place, "sysfs")
succeeded(os.listdir(place))
""",
    ),
    Attack(
        name="mount-debugfs",
        wants="the kernel's debugging files",
        code="""
place = new_directory()
mount("debugfs", place, "debugfs")
succeeded(os.listdir(place)[:5])
""",
        needs="debugfs",
    ),
    Attack(
        name="mount-new-api",
        wants="a mount through fsopen, which older filters do not know",
        code="succeeded('fsopen gave descriptor %d' % syscall('fsopen', b'tmpfs', 0))",
    ),
    Attack(
        name="mount-open-tree",
        wants="a copy of the mount tree to change at leisure",
        code="succeeded('open_tree gave descriptor %d' % syscall('open_tree', AT_FDCWD, b'/', 1))",
    ),
    Attack(
        name="mount-setattr",
        wants="to make a read-only mount writable through mount_setattr",
        code="""
attributes = struct.pack("QQQQ", 0, 1, 0, 0)
syscall("mount_setattr", AT_FDCWD, b"/proc/sys", 0, attributes, len(attributes))
succeeded("/proc/sys: " + [line for line in open("/proc/self/mountinfo") if " /proc/sys " in line][0])
""",
    ),
    Attack(
        name="mount-bind-over-interpreter",
        wants="to put its own program where the next sandbox's interpreter is",
        code="""
open("/tmp/evil", "w").close()
mount("/tmp/evil", os.path.realpath(sys.executable), None, MS_BIND)
succeeded("%s holds %d bytes" % (sys.executable, os.stat(sys.executable).st_size))
""",
        mess=True,
    ),
    Attack(
        name="remount-proc-sys",
        wants="to make /proc/sys writable again",
        code="""
mount(None, "/proc/sys", None, MS_REMOUNT | MS_BIND)
with open("/proc/sys/kernel/core_pattern", "r+"):
    succeeded("core_pattern opens for writing")
""",
    ),
    Attack(
        name="unmask-proc",
        wants="to take away the cover of a masked file",
        code="""
masked = [line.split()[4] for line in open("/proc/self/mountinfo") if line.split()[4].startswith("/proc/")]
syscall("umount2", (masked or ["/proc/keys"])[-1].encode(), 0)
succeeded("uncovered " + masked[-1])
""",
    ),
    Attack(
        name="pivot-root",
        wants="another root directory",
        code="""
def pivot():
    syscall("unshare", CLONE_NEWNS)
    mount(None, "/", None, 0x40000 | 0x4000)
    place = new_directory()
    mount("none", place, "tmpfs")
    os.mkdir(place + "/old")
    syscall("pivot_root", place.encode(), place.encode() + b"/old")
    return os.listdir("/")
succeeded("the root directory holds %s now" % in_child(pivot))
""",
    ),
    Attack(
        name="chroot",
        wants="to change its root, and to climb out of one with a directory that it kept open",
        code="""
def climb():
    here = os.open("/", os.O_RDONLY)
    os.chroot(new_directory())
    os.fchdir(here)
    for _ in range(64): os.chdir("..")
    os.chroot(".")
    return sorted(os.listdir("/"))[:8]
succeeded("out of the jail: %s" % in_child(climb))
""",
    ),
)
