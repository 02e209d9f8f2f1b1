"""The seccomp program, by an interpreter of its own language: what it answers to which call."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuum.sandbox import seccomp
from continuum.sandbox.syscall_numbers import NEWEST, NUMBERS, UNUSED
from tests.conftest import require

ALLOWED = 0x7FFF0000
EPERM, ENOSYS, EPROTONOSUPPORT, ESOCKTNOSUPPORT, EAFNOSUPPORT = 1, 38, 93, 94, 97
HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))

words = st.integers(0, 2**32 - 1)
arguments = st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6)
columns = pytest.mark.parametrize("column", [0, 1], ids=seccomp.MACHINES)


def answer(architecture: int, number: int, *given_arguments: int) -> int:
    """What the program answers, by the rules of the kernel's classic BPF."""
    values = (*given_arguments, *(0,) * (6 - len(given_arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *values)
    code = list(struct.iter_unpack("<HBBI", seccomp.program()))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                position += value
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"no instruction of seccomp's: {operation:#x}")


def error(column: int, name: str, *given_arguments: int) -> int | None:
    """The error that a call gets, None for none."""
    number = NUMBERS[name][column]
    assert number is not None
    verdict = answer(seccomp.AUDIT_ARCHITECTURES[column], number, *given_arguments)
    assert verdict == ALLOWED or verdict >> 16 == 5
    return None if verdict == ALLOWED else verdict & 0xFFFF


@columns
def test_what_no_script_may_call_is_refused_whatever_the_arguments(column: int) -> None:
    for name, fragment in seccomp.NEVER.items():
        if NUMBERS[name][column] is not None:
            expected = {seccomp.REFUSED: EPERM, seccomp.MISSING: ENOSYS}[fragment]
            assert error(column, name) == error(column, name, *[2**64 - 1] * 6) == expected, name


@columns
def test_every_other_number_is_allowed_up_to_the_newest_that_was_looked_at(column: int) -> None:
    named = {numbers[column] for numbers in NUMBERS.values()}
    architecture = seccomp.AUDIT_ARCHITECTURES[column]
    for number in range(NEWEST + 1):
        if number not in named:
            unused = any(first <= number <= last for first, last in UNUSED[column])
            assert answer(architecture, number) == (0x50000 | ENOSYS if unused else ALLOWED), number
    for number in (NEWEST + 1, NEWEST + 2, 1000, 0x3FFFFFFF, 0x40000000, 0x40000101, 0xFFFFFFFF):
        assert answer(architecture, number) == 0x50000 | ENOSYS, "later calls, and those of x32"


@given(words, words, arguments)
def test_another_convention_on_the_same_machine_can_call_nothing(
    architecture: int, number: int, values: list[int]
) -> None:
    if architecture not in seccomp.AUDIT_ARCHITECTURES:
        assert answer(architecture, number, *values) == 0x50000 | ENOSYS
    assert answer(0x40000003, number, *values) == 0x50000 | ENOSYS, "int 0x80"
    assert answer(0x40000028, number, *values) == 0x50000 | ENOSYS, "arm of 32 bits"


@given(st.sampled_from(seccomp.AUDIT_ARCHITECTURES), st.integers(0, NEWEST + 10) | words, arguments)
def test_every_call_gets_an_answer(architecture: int, number: int, values: list[int]) -> None:
    verdict = answer(architecture, number, *values)
    assert verdict == ALLOWED or (verdict >> 16 == 5 and verdict & 0xFFFF < 4096)


@columns
def test_a_process_may_be_made_but_not_in_namespaces_of_its_own(column: int) -> None:
    thread, fork = 0x3D0F00, 0x1200011
    assert error(column, "clone", thread) is error(column, "clone", fork) is None
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert error(column, "clone", fork | flag) == EPERM, hex(flag)
    assert error(column, "clone3") == ENOSYS


@columns
def test_sockets_are_those_of_ordinary_programs(column: int) -> None:
    flags = 0o2000000 | 0o4000
    unix, inet, inet6, netlink = 1, 2, 10, 16
    for kind in (1, 2, 5):
        assert error(column, "socket", unix, kind | flags) is None
        assert error(column, "socketpair", unix, kind | flags) is None
    for family in (inet, inet6):
        for protocol in (0, 1, 6, 17, 58):
            assert error(column, "socket", family, 1 | flags, protocol) is None
            assert error(column, "socket", family, 2 | flags, protocol) is None
        for protocol in (33, 132, 136, 255, 256, 262):
            assert error(column, "socket", family, 1, protocol) == EPROTONOSUPPORT
        assert error(column, "socket", family, 3, 1) == EPERM, "as the kernel says to who may not"
        for kind in (4, 5, 6, 10):
            assert error(column, "socket", family, kind) == ESOCKTNOSUPPORT
        assert error(column, "socketpair", family, 1) == EAFNOSUPPORT
    assert error(column, "socket", netlink, 3 | flags, 0) is None
    for protocol in (*range(1, 23),):
        assert error(column, "socket", netlink, 3, protocol) == EPROTONOSUPPORT
    for family in {*range(50)} - {unix, inet, inet6, netlink}:
        assert error(column, "socket", family, 1) == EAFNOSUPPORT
        assert error(column, "socket", family | 1 << 32, 1) == EAFNOSUPPORT, "the kernel reads the lower half"


@columns
def test_terminals_cannot_be_typed_into(column: int) -> None:
    for command in (0x5412, 0x541C, 0x5423, 0x5412 | 1 << 32):
        assert error(column, "ioctl", 0, command) == EPERM
    for command in (0x5401, 0x5413, 0x541B, 0x5421):
        assert error(column, "ioctl", 0, command) is None


@columns
def test_the_personality_can_be_asked_and_not_changed(column: int) -> None:
    assert error(column, "personality", 0xFFFFFFFF) is error(column, "personality", 0) is None
    for persona in (0x0040000, 0x0400000, 0x8):
        assert error(column, "personality", persona) == EPERM


@columns
def test_limits_are_the_scripts_own_but_for_core_dumps(column: int) -> None:
    somewhere, core, files, myself, runner = 0x7FFF00000000, 4, 7, 0, 1
    assert error(column, "prlimit64", myself, core, 0) is None, "asked"
    assert error(column, "prlimit64", runner, files, 0) is None
    assert error(column, "prlimit64", myself, files, somewhere) is None
    assert error(column, "prlimit64", 77, files, somewhere) is None
    assert error(column, "prlimit64", myself, core, somewhere) == 0, "seems to be done"
    assert error(column, "prlimit64", myself, core, 0x10) == 0, "a low address, too"
    assert error(column, "prlimit64", runner, files, somewhere) == EPERM
    assert error(column, "setrlimit", core, somewhere) == 0
    assert error(column, "setrlimit", files, somewhere) is None


@columns
def test_the_runners_priority_is_not_the_scripts(column: int) -> None:
    process, group, user = 0, 1, 2
    for which in (process, group):
        assert error(column, "setpriority", which, 0, 19) is error(column, "setpriority", which, 77, 19) is None
        assert error(column, "setpriority", which, 1, 19) == EPERM
    assert error(column, "setpriority", user, 0, 19) == EPERM
    assert error(column, "ioprio_set", 1, 0) is error(column, "ioprio_set", 2, 77) is None
    assert error(column, "ioprio_set", 1, 1) == error(column, "ioprio_set", 3, 0) == EPERM
    for name in ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
        assert error(column, name, 0) is error(column, name, 77) is None
        assert error(column, name, 1) == EPERM


@pytest.mark.parametrize(("column", "header"), [*enumerate(HEADERS)], ids=seccomp.MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(column: int, header: Path) -> None:
    require("linux-headers", header.exists(), f"{header} is missing: install Debian's linux-libc-dev")
    lines = header.read_text().splitlines()
    found = [re.match(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", line) for line in lines]
    told = {match[1]: int(match[2]) for match in found if match}
    compared = {name: numbers[column] for name, numbers in NUMBERS.items() if name in told}
    assert len(compared) > 90
    assert compared == {name: told[name] for name in compared}
    newest = max(told.values())
    missing = {name for name, numbers in NUMBERS.items() if (numbers[column] or 0) <= newest} - set(told)
    assert all(NUMBERS[name][column] is None for name in missing), missing


def test_every_call_of_the_policy_has_its_numbers_and_every_number_its_call() -> None:
    assert not set(seccomp.NEVER) & set(seccomp.BY_ARGUMENT)
    assert set(seccomp.NEVER) | set(seccomp.BY_ARGUMENT) == set(NUMBERS)


def test_no_call_goes_through_more_than_a_few_instructions() -> None:
    """Kernels before 5.11 run the whole way at each call, and gVisor always does."""
    depth = max(len(seccomp._ranges(column)) for column in (0, 1)).bit_length()
    assert depth <= 7
    assert len(seccomp.program()) // 8 < 4096, "the kernel's limit"
