"""The system calls that scripts may not make: one seccomp program, the same for every backend. Nothing here does I/O.

The worker computes it and the runner installs it in itself before it forks its first child, so that every script inherits it
at no cost of its own. It comes on top of what the container engine filters, and is all there is under bubblewrap. Two kinds of
calls are refused: those that reach for the kernel or for other processes, and those that make something which outlives its
process. The rest of the kernel is what ordinary libraries use.

A call is refused with the error that makes libraries cope. EPERM is what the kernel itself says to a user without rights.
ENOSYS is what a kernel without the call says, to which libraries know an answer: glibc starts threads by clone when clone3
is missing.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from continuum.sandbox.syscall_numbers import NEWEST, NUMBERS, UNUSED

MACHINES = ("x86_64", "aarch64")
"""What `uname -m` says where the program works. On any other it refuses every call."""
AUDIT_ARCHITECTURES = (0xC000003E, 0xC00000B7)
"""What the kernel calls them in a filter. Calls of another convention on the same machine (int 0x80, 32 bits) have others;
those of x32 have numbers beyond `NEWEST`."""


class Instruction(NamedTuple):
    """One of classic BPF: what to do, how many to jump over if a test holds or does not, and a number."""

    code: int
    if_true: int
    if_false: int
    value: int


Fragment = tuple[Instruction, ...]
"""Instructions every way through which ends in an answer. So fragments nest, and each may stand anywhere."""

_LOAD, _AND, _JUMP, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _ANSWER = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


def refuse(errno: int) -> Fragment:
    """Let the call return this error without being made; with 0, let it seem to have been made."""
    return (Instruction(_ANSWER, 0, 0, 0x00050000 | errno),)


def switch(argument: int, cases: Mapping[int, Fragment], otherwise: Fragment, *, mask: int = 0xFFFFFFFF) -> Fragment:
    """Go on by the value of an argument: of its lower 32 bits, which is all that the kernel reads of the ones used here."""
    code = [Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument), Instruction(_AND, 0, 0, mask)]
    for value, then in cases.items():
        code += [Instruction(_IF_EQUAL, 0, len(then), value), *then]
    return (*code, *otherwise)


def if_any_bit(argument: int, bits: int, then: Fragment, otherwise: Fragment) -> Fragment:
    """Go on by whether an argument's lower half has one of these bits."""
    load = Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)
    return (load, Instruction(_IF_ANY_BIT, 0, len(then), bits), *then, *otherwise)


def if_null(argument: int, then: Fragment, otherwise: Fragment) -> Fragment:
    """Go on by whether an argument, a pointer, is null."""
    low, high = (Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument + half) for half in (0, 4))
    skip = len(then)
    return (low, Instruction(_IF_EQUAL, 0, 2 + skip, 0), high, Instruction(_IF_EQUAL, 0, skip, 0), *then, *otherwise)


# The numbers are Linux's, whatever the worker's own system calls them.
ALLOW: Fragment = (Instruction(_ANSWER, 0, 0, 0x7FFF0000),)
REFUSED = refuse(1)  # EPERM
MISSING = refuse(38)  # ENOSYS
IGNORED = refuse(0)

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
RUNNER = 1
"""The runner is the first process of its sandbox. Where a script runs as the same user (bubblewrap without root), nothing
else keeps that from changing the runner's limits and priority, which the next script would inherit."""
F_SETLEASE, F_NOTIFY = 1024, 1026
MAP_HUGETLB, MFD_HUGETLB = 0x40000, 4
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16
STREAM, DATAGRAM, RAW = 1, 2, 3
PROTOCOLS = (0, 1, 6, 17, 58)
"""Of the internet: the usual one, ICMP, TCP, UDP, ICMPv6. Naming another makes the kernel load a module for it."""
RLIMIT_CORE = 4
PRIO_USER, IOPRIO_WHO_USER = 2, 3

_internet = switch(
    1,
    {kind: switch(2, dict.fromkeys(PROTOCOLS, ALLOW), refuse(93)) for kind in (STREAM, DATAGRAM)} | {RAW: REFUSED},
    refuse(94),  # ESOCKTNOSUPPORT; 93 is EPROTONOSUPPORT
    mask=0xF,  # the rest are SOCK_NONBLOCK and SOCK_CLOEXEC
)
_unsupported_family = refuse(97)  # EAFNOSUPPORT
_not_the_runners = switch(0, {RUNNER: REFUSED}, ALLOW)

BY_ARGUMENT: dict[str, Fragment] = {
    "clone": if_any_bit(0, NEW_NAMESPACES, REFUSED, ALLOW),
    # 0 is what is in force, all ones asks what is. Others turn off the randomness of addresses.
    "personality": switch(0, {0: ALLOW, 0xFFFFFFFF: ALLOW}, REFUSED),
    # They type into a terminal for somebody else, and load line disciplines.
    "ioctl": switch(1, {TIOCSTI: REFUSED, TIOCLINUX: REFUSED, TIOCSETD: REFUSED}, ALLOW),
    # Leases hold up whoever else opens a file, and watches tell of it: sandboxes share the files of their interpreter.
    "fcntl": switch(1, {F_SETLEASE: REFUSED, F_NOTIFY: REFUSED}, ALLOW),
    # Huge pages come out of a pool that the host made for somebody, and no memory limit counts them.
    "mmap": if_any_bit(3, MAP_HUGETLB, refuse(12), ALLOW),  # ENOMEM, as where there is no pool
    "memfd_create": if_any_bit(1, MFD_HUGETLB, refuse(12), ALLOW),
    # getaddrinfo asks the kernel for its addresses by netlink, protocol 0 (route).
    "socket": switch(
        0,
        {
            UNIX: ALLOW,
            INET: _internet,
            INET6: _internet,
            NETLINK: switch(2, {0: ALLOW}, refuse(93)),
        },
        _unsupported_family,
    ),
    "socketpair": switch(0, {UNIX: ALLOW}, _unsupported_family),
    # A core dump that is piped to a program of the host runs that program as root, whatever the limit, unless that is 1: so 1
    # is what the runner sets, and what stays. Programs that turn their dumps off believe they have.
    "setrlimit": switch(0, {RLIMIT_CORE: IGNORED}, ALLOW),
    "prlimit64": if_null(
        2, ALLOW, switch(0, {RUNNER: REFUSED}, switch(1, {RLIMIT_CORE: IGNORED}, ALLOW))
    ),
    "setpriority": switch(0, {PRIO_USER: REFUSED}, switch(1, {RUNNER: REFUSED}, ALLOW)),
    "ioprio_set": switch(0, {IOPRIO_WHO_USER: REFUSED}, switch(1, {RUNNER: REFUSED}, ALLOW)),
    **dict.fromkeys(("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"), _not_the_runners),
}  # fmt: skip

NEVER: dict[str, Fragment] = {
    **dict.fromkeys(
        (
            # Other namespaces, other file systems, and files by other ways than their paths.
            *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "mount_setattr"),
            *("fsopen", "fsconfig", "fsmount", "fspick", "name_to_handle_at", "open_by_handle_at"),
            # Other processes: their memory, their descriptors.
            *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp"),
            *("pidfd_getfd", "perf_event_open"),
            # The host.
            *("reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff"),
            *("acct", "syslog", "quotactl", "quotactl_fd", "fanotify_init", "fanotify_mark", "vhangup", "iopl", "ioperm"),
            *("sethostname", "setdomainname", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime"),
        ),
        REFUSED,
    ),
    **dict.fromkeys(
        (
            # Its flags are in memory, which no filter can read.
            "clone3",
            # Where most of the kernel's holes of these years were, and which tasks do without.
            *("bpf", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_secret"),
            *("uselib", "modify_ldt", "lookup_dcookie", "nfsservctl"),
            *("statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"),
            # What outlives the process that made it: keys, POSIX message queues, System V objects. Python's own shared memory
            # and semaphores are files in /dev/shm, which is emptied.
            *("keyctl", "add_key", "request_key"),
            *("mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr"),
            *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semtimedop", "semctl"),
            *("msgget", "msgsnd", "msgrcv", "msgctl"),
            # One count for the whole host bounds these, so that one script could use them up for all.
            *("io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents"),
            # Where memory lies is the host's business.
            *("set_mempolicy", "get_mempolicy", "mbind", "move_pages", "migrate_pages", "set_mempolicy_home_node"),
        ),
        MISSING,
    ),
}  # fmt: skip


@functools.cache
def program() -> bytes:
    """The program, as prctl(PR_SET_SECCOMP) takes its instructions on any little-endian machine."""
    code = [Instruction(_LOAD, 0, 0, _ARCHITECTURE_AT)]
    for column, architecture in enumerate(AUDIT_ARCHITECTURES):
        section = (Instruction(_LOAD, 0, 0, _NUMBER_AT), *_search(_ranges(column)))
        # A conditional jump reaches over 255 instructions at most.
        code += [Instruction(_IF_EQUAL, 1, 0, architecture), Instruction(_JUMP, 0, 0, len(section)), *section]
    return _encode((*code, *MISSING))


def _ranges(column: int) -> list[tuple[int, Fragment]]:
    """What is to be done from which number on, up to the next."""
    answers = [ALLOW] * (NEWEST + 1)
    for first, last in UNUSED[column]:
        answers[first : last + 1] = [MISSING] * (last + 1 - first)
    for name, fragment in (NEVER | BY_ARGUMENT).items():
        number = NUMBERS[name][column]
        if number is not None:
            answers[number] = fragment
    answers.append(MISSING)
    return [(number, it) for number, it in enumerate(answers) if number == 0 or it != answers[number - 1]]


def _search(ranges: Sequence[tuple[int, Fragment]]) -> Fragment:
    """Find a number's range by halving: kernels that remember no answers go through this at every call."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return (Instruction(_IF_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *above)


def _encode(code: Iterable[Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
