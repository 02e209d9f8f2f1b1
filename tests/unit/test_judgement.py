"""How ends are told: each limit has an outcome of its own, and nothing else is mistaken for it."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuum.model import Ending
from continuum.sandbox.judgement import Exit, judge, parse_exit
from continuum.sandbox.limits import Limits
from tests.support.exits import told_exit

LIMITS = Limits(memory_mb=512, disk_mb=16, files=4096, processes=40, open_files=1024, cpu_seconds=3)
FAILED = 1 << 8
NO_SPACE = "OSError: [Errno 28] No space left on device"
NO_PROCESS = "BlockingIOError: [Errno 11] Resource temporarily unavailable"
NO_THREAD = "RuntimeError: can't start new thread"
NO_FILE = "OSError: [Errno 24] Too many open files: '/etc/passwd'"


def ended(status: int = FAILED, **values: object) -> Exit:
    return parse_exit(told_exit(status, **values))


@pytest.mark.parametrize(
    ("status", "error_output", "expected"),
    [
        (0, "warning\n", (Ending.COMPLETED, 0, "")),
        (0, NO_SPACE, (Ending.COMPLETED, 0, "")),
        (3 << 8, "", (Ending.FAILED, 3, "exit code 3")),
        (FAILED, "Traceback\nValueError: bad\n\n", (Ending.FAILED, 1, "ValueError: bad\nexit code 1")),
        (signal.SIGSEGV, "", (Ending.FAILED, 139, "Killed by signal 11 (SIGSEGV)")),
        (signal.SIGSEGV | 0x80, "", (Ending.FAILED, 139, "Killed by signal 11 (SIGSEGV)")),
        (40, "", (Ending.FAILED, 168, "Killed by signal 40 (unknown)")),
    ],
)
def test_an_exit_is_judged_by_its_status_and_the_last_line(
    status: int, error_output: str, expected: tuple[Ending, int, str]
) -> None:
    assert judge(ended(status), 5.0, LIMITS, error_output) == expected


def test_a_last_line_without_end_is_told_by_its_beginning() -> None:
    _, _, message = judge(ended(), 5.0, LIMITS, "x" * 1_000_000)
    assert message == "x" * 500 + "\nexit code 1"


@pytest.mark.parametrize("between", ["\n", " \r\n", "\x0b\x0c\x1c\x85\u2028"])
def test_the_last_line_that_says_something_is_told_whatever_follows_it(between: str) -> None:
    """A flood of empty lines, too, each of which would hold the worker up."""
    _, _, message = judge(ended(), 1.0, LIMITS, f"Traceback{between} ValueError: bad {between * 10_000}")
    assert message == " ValueError: bad\nexit code 1"


@given(st.text("ab \n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"))
def test_the_last_line_is_what_python_calls_a_line(error_output: str) -> None:
    lines = [line for line in error_output.splitlines() if line.strip()] or [""]
    _, _, message = judge(ended(), 1.0, LIMITS, error_output)
    assert message == f"{lines[-1].rstrip()}\nexit code 1".lstrip("\n")


def test_a_timeout_is_told_as_such_whatever_else_there_was() -> None:
    told = ended(signal.SIGKILL, timed_out=True, oom=True, out_of_cpu_time=True)
    assert judge(told, 0.25, LIMITS, "") == (Ending.TIMED_OUT, None, "Timeout: ran longer than 0.25 s")


def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_any_other() -> None:
    kill = signal.SIGKILL
    short = (Ending.OUT_OF_MEMORY, 137, "Out of memory: used more than 512 MB")
    assert judge(ended(kill, oom=True), 5.0, LIMITS, "") == short
    assert judge(ended(137 << 8, oom=True), 5.0, LIMITS, "Killed") == short, "a shell's way to tell of a child"
    assert judge(ended(kill), 5.0, LIMITS, "") == (Ending.FAILED, 137, "Killed by signal 9 (SIGKILL)")


def test_a_script_that_fails_because_its_child_was_killed_ran_out_of_memory_and_one_that_copes_completes() -> None:
    last = "subprocess.CalledProcessError: Command 'x' died with <Signals.SIGKILL: 9>."
    expected = (Ending.OUT_OF_MEMORY, 1, f"Out of memory: used more than 512 MB ({last})")
    assert judge(ended(oom=True), 5.0, LIMITS, f"Traceback\n{last}\n") == expected
    assert judge(ended(0, oom=True), 5.0, LIMITS, "") == (Ending.COMPLETED, 0, "")


@pytest.mark.parametrize("last", ["MemoryError", "OSError: [Errno 12] Cannot allocate memory"])
def test_memory_that_was_refused_is_told_with_what_python_said(last: str) -> None:
    expected = (Ending.OUT_OF_MEMORY, 1, f"Out of memory: used more than 512 MB ({last})")
    assert judge(ended(), 5.0, LIMITS, last) == expected


def test_cpu_time_is_told_from_other_kills() -> None:
    told = ended(signal.SIGKILL, out_of_cpu_time=True)
    assert judge(told, 5.0, LIMITS, "") == (Ending.TIMED_OUT, 137, "CPU time: used more than 3 s")
    assert judge(ended(out_of_cpu_time=True), 5.0, LIMITS, "E: x")[0] is Ending.FAILED, "it ended by itself"


@pytest.mark.parametrize(
    ("full", "files", "words"),
    [
        (["/tmp"], 4096, "/tmp holds at most 16 MB and 4096 files"),
        (["/tmp", "/dev/shm"], 4096, "/tmp and /dev/shm hold at most 16 MB and 4096 files"),
        ([], None, "each writable place holds at most 16 MB"),
    ],
)
def test_a_full_disk_is_named_with_what_it_holds(full: list[str], files: int | None, words: str) -> None:
    message = judge(ended(full=full), 5.0, replace(LIMITS, files=files), f"Traceback\n{NO_SPACE}\n")[2]
    assert message == f"Disk full: {words} ({NO_SPACE})\nexit code 1"


@pytest.mark.parametrize(
    ("full", "words"),
    [
        (["/dev/shm"], "Disk full: /dev/shm holds at most 16 MB and 4096 files"),
        ([], "Perhaps disk full: each writable place holds at most 16 MB and 4096 files"),
    ],
)
def test_a_bus_error_is_told_as_a_page_without_room_for_sure_where_a_place_is_full(full: list[str], words: str) -> None:
    expected = f"{words} (killed by signal 7, SIGBUS)\nexit code 135"
    assert judge(ended(signal.SIGBUS, full=full), 5.0, LIMITS, "") == (Ending.FAILED, 135, expected)


def test_open_files_are_told_with_their_limit() -> None:
    expected = f"Too many open files: a process may have 1024 ({NO_FILE})\nexit code 1"
    assert judge(ended(), 5.0, LIMITS, NO_FILE) == (Ending.FAILED, 1, expected)


@pytest.mark.parametrize("last", [NO_PROCESS, NO_THREAD, "sh: 1: Cannot fork: Resource temporarily unavailable"])
@pytest.mark.parametrize(("counted", "words"), [(True, "Too"), (None, "Perhaps too")])
def test_processes_are_told_with_their_limit(last: str, counted: bool | None, words: str) -> None:
    expected = f"{words} many processes: at most 40, threads included ({last})\nexit code 1"
    assert judge(ended(too_many_processes=counted), 5.0, LIMITS, last) == (Ending.FAILED, 1, expected)


def test_what_only_looks_like_a_limit_is_told_as_it_is() -> None:
    assert judge(ended(), 5.0, LIMITS, NO_PROCESS)[2] == f"{NO_PROCESS}\nexit code 1", "a socket that would block"
    unlimited = replace(LIMITS, processes=None)
    assert judge(ended(too_many_processes=None), 5.0, unlimited, NO_PROCESS)[2] == f"{NO_PROCESS}\nexit code 1"
    assert judge(ended(), 5.0, LIMITS, f"{NO_SPACE}\nValueError: x")[2] == "ValueError: x\nexit code 1"
