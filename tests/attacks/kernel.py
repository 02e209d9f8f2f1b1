"""The kernel's rarely used calls: each a surface where breaking out begins, none of use to an honest script."""

from __future__ import annotations

from tests.attacks.attack import Attack

ATTACKS = (
    Attack(
        name="userfaultfd",
        wants="to halt the kernel in the middle of a copy, which many exploits need",
        code="succeeded('descriptor %d' % syscall('userfaultfd', 0))",
    ),
    Attack(
        name="userfaultfd-user-mode",
        wants="the same in the form that needs no rights",
        code="succeeded('descriptor %d' % syscall('userfaultfd', 1))",
    ),
    Attack(
        name="io-uring",
        wants="io_uring, whose bugs were a third of the kernel's exploited ones and which no filter sees into",
        code="succeeded('descriptor %d' % syscall('io_uring_setup', 4, ctypes.create_string_buffer(256)))",
    ),
    Attack(
        name="bpf",
        wants="to load programs and maps into the kernel",
        code="succeeded('map %d' % syscall('bpf', 0, struct.pack('5I', 2, 4, 8, 1, 0).ljust(128, b'\\0'), 128))",
    ),
    Attack(
        name="perf-event",
        wants="to count the events of the whole machine",
        code="""
attributes = struct.pack("IIQ", 1, 128, 0).ljust(128, b"\\0")
succeeded("descriptor %d" % syscall("perf_event_open", attributes, -1, 0, -1, 0))
""",
    ),
    Attack(
        name="perf-event-of-its-own",
        wants="performance counters of its own, a way into the kernel and to other people's secrets",
        code="""
attributes = struct.pack("IIQ", 1, 128, 1).ljust(40, b"\\0") + struct.pack("Q", 0x60) + b"\\0" * 80
succeeded("descriptor %d" % syscall("perf_event_open", attributes, 0, -1, -1, 0))
""",
    ),
    Attack(
        name="keyring",
        wants="the kernel's keyrings, which outlive every process",
        code="succeeded('session keyring %d' % syscall('keyctl', 0, -3, 1))",
    ),
    Attack(
        name="keyring-through-32-bit-call",
        wants="the same through the kernel's 32-bit entry, which filters by number overlook",
        code="""
if platform.machine() != "x86_64": stopped("there is no 32-bit entry here")
# push rbx; mov eax, 288 (keyctl); xor ebx, ebx; mov ecx, -3; xor edx, edx; inc edx; int 0x80; pop rbx; ret
program = bytes.fromhex("53b82001000031dbb9fdffffff31d2ffc2cd805bc3")
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(program)
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
answer = function()
if answer > 0: succeeded("session keyring %d" % answer)
stopped(os.strerror(-answer))
""",
        may_die=True,
        needs="32-bit calls",
    ),
    Attack(
        name="x32-calls",
        wants="calls by their second set of numbers on x86_64, which filters overlook",
        code="""
result = libc.syscall(0x40000000 + 39)
if result > 0: succeeded("getpid gave %d" % result)
stopped(os.strerror(ctypes.get_errno()))
""",
        may_die=True,
        needs="CONFIG_X86_X32_ABI",
    ),
    Attack(
        name="ptrace-child",
        wants="to steer another process, though only one of its own: no honest script debugs",
        code="""
pid = os.fork()
if pid == 0: time.sleep(3); os._exit(0)
try:
    syscall("ptrace", 0x4206, pid, 0, 0)
    print("SUCCEEDED: seized process", pid)
finally:
    os.kill(pid, signal.SIGKILL)
""",
    ),
    Attack(
        name="read-memory-of-child",
        wants="the memory of another process through process_vm_readv",
        code="""
secret = ctypes.create_string_buffer(b"something")
pid = os.fork()
if pid == 0: time.sleep(3); os._exit(0)
local = ctypes.create_string_buffer(9)
vectors = [struct.pack("QQ", ctypes.addressof(buffer), 9) for buffer in (local, secret)]
try:
    syscall("process_vm_readv", pid, vectors[0], 1, vectors[1], 1, 0)
    print("SUCCEEDED: read", local.raw)
finally:
    os.kill(pid, signal.SIGKILL)
""",
    ),
    Attack(
        name="kcmp",
        wants="to learn the order of the kernel's own addresses",
        code="succeeded('compared: %d' % syscall('kcmp', os.getpid(), os.getpid(), 1, 0, 0))",
    ),
    Attack(
        name="modify-ldt",
        wants="segment descriptors of its own, a source of old exploits",
        code="""
entry = struct.pack("4I", 0, 0, 0xFFFFF, 0b1010001)
syscall("modify_ldt", 1, entry, 16)
succeeded("an entry was written")
""",
        needs="x86 and CONFIG_MODIFY_LDT_SYSCALL",
    ),
    Attack(
        name="personality",
        wants="a process without address randomisation, to make exploits repeatable",
        code="""
syscall("personality", 0x0040000)
succeeded("personality is %#x" % libc.personality(ctypes.c_ulong(0xFFFFFFFF)))
""",
    ),
    Attack(
        name="crypto-socket",
        wants="the kernel's cryptography through sockets (AF_ALG)",
        code="succeeded(socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))",
        needs="CONFIG_CRYPTO_USER_API",
    ),
    Attack(
        name="hypervisor-socket",
        wants="a socket to the hypervisor (AF_VSOCK), past every network rule",
        code="""
with socket.socket(40, socket.SOCK_STREAM) as opened:
    succeeded("a socket of family %d" % opened.family)
""",
        needs="CONFIG_VSOCKETS",
    ),
    Attack(
        name="rare-socket-families",
        wants="protocols that nobody audits any more",
        code="""
opened = []
for family in (4, 5, 9, 11, 13, 15, 19, 21, 23, 26, 29, 30, 31, 33, 35, 36, 37, 39, 41, 42, 43, 44, 45):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind).close()
            opened.append(family)
            break
        except OSError as error:
            why = error
if opened: succeeded("families %s" % opened)
stopped(why)
""",
        needs="one of the rarer socket families",
    ),
    Attack(
        name="fanotify",
        wants="to watch and hold up other people's use of files",
        code="succeeded('descriptor %d' % syscall('fanotify_init', 0x4, 0))",
    ),
    Attack(
        name="kernel-log",
        wants="the kernel's log, with its addresses and other containers' troubles",
        code="""
buffer = ctypes.create_string_buffer(4096)
length = syscall("syslog", 3, buffer, 4096)
succeeded("%d bytes: %r" % (length, buffer.raw[:60]))
""",
    ),
    Attack(
        name="kernel-addresses",
        wants="where the kernel's functions are",
        code="""
with open("/proc/kallsyms") as file:
    line = file.readline()
if int(line.split()[0], 16): succeeded(line)
stopped("all addresses are zero")
""",
    ),
    Attack(
        name="kernel-keys-listed",
        wants="the list of everybody's keys",
        code="""
remount = [line.split()[4] for line in open("/proc/self/mountinfo") if line.split()[4] == "/proc/keys"]
if remount:
    try:
        syscall("umount2", b"/proc/keys", 0)
    except OSError:
        pass
text = open("/proc/keys").read()
if text: succeeded(text.splitlines()[0])
stopped("the list is empty")
""",
        open_on={"bubblewrap": "shares the host's kernel"},
        needs="a user with keys",
    ),
    Attack(
        name="load-module",
        wants="code of its own in the kernel",
        code="""
try:
    syscall("init_module", b"", 0, b"")
except OSError as error:
    if error.errno == errno.ENOEXEC: succeeded("the kernel takes modules from here")
    raise
""",
        needs="modules",
    ),
    Attack(
        name="process-accounting",
        wants="to have every process that ends on the host written to a file",
        code="syscall('acct', None)\nsucceeded('acct was obeyed')",
    ),
    Attack(
        name="clock",
        wants="to change the host's clock",
        code="""
times = ctypes.create_string_buffer(256)
syscall("adjtimex", times)
status = struct.unpack_from("i", times.raw, 40)[0]
ctypes.memset(times, 0, 256)
struct.pack_into("i", times, 0, 0x10)
struct.pack_into("i", times, 40, status)
syscall("adjtimex", times)
succeeded("the clock's status was written with what it was: %d" % status)
""",
    ),
    Attack(
        name="swap",
        wants="to give the host a swap file of its own making",
        code="""
try:
    syscall("swapon", b"/tmp/no-such-file", 0)
except OSError as error:
    if error.errno == errno.ENOENT: succeeded("swapon looks for the file: only the file was missing")
    raise
""",
    ),
    Attack(
        name="move-memory-between-nodes",
        wants="to decide where memory lies, for itself and for others",
        code="""
buffer = mmap.mmap(-1, 8192)
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) & ~4095
syscall("mbind", ctypes.c_void_p(address), 4096, 0, None, 0, 0)
succeeded("mbind was obeyed")
""",
        needs="CONFIG_NUMA",
    ),
    Attack(
        name="inject-terminal-input",
        wants="to type on the terminal of whoever started the sandbox (TIOCSTI)",
        code="""
for path in ("/dev/tty", "/dev/console", "/dev/pts/0", "/proc/self/fd/0", "/proc/self/fd/2"):
    try:
        terminal = os.open(path, os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(terminal, 0x5412, b"#")
        succeeded("typed on " + path)
    except OSError as error:
        why = error
stopped(why)
""",
        needs="a terminal: no sandbox is given one",
    ),
    Attack(
        name="steal-descriptors-of-child",
        wants="another process's descriptors through pidfd_getfd",
        code="""
pid = os.fork()
if pid == 0: time.sleep(3); os._exit(0)
try:
    handle = syscall("pidfd_open", pid, 0)
    print("SUCCEEDED: descriptor", syscall("pidfd_getfd", handle, 1, 0))
finally:
    os.kill(pid, signal.SIGKILL)
""",
    ),
)
