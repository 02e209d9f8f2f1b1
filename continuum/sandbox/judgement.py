"""How a script ended, in a word, a number and a message whose first line is the cause.

The runner tells what it saw; the last line that the script wrote to its error output tells the rest. A script that fails
because it met a limit is told which, and how high it is.
"""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from continuum.model import Ending
from continuum.sandbox.limits import Limits
from continuum.sandbox.protocol import SandboxLost

_PLACE = re.compile(r"(/[a-z]{1,20}){1,4}")
_MOST_PLACES = 8
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_LONGEST_LINE = 500
"""Characters of a script's last line that stand for its failure; all of it is in its error output."""


@dataclass(frozen=True, slots=True)
class Exit:
    """What a runner tells of a script's end.

    status: as wait() has it. oom: a process was killed for want of memory. too_many_processes: one more was refused; None
    where nobody counts that. full: the writable places without room left. dropped_*: bytes beyond the output limit.
    """

    status: int
    timed_out: bool
    out_of_cpu_time: bool
    oom: bool
    too_many_processes: bool | None
    full: tuple[str, ...]
    dropped_output: int
    dropped_error: int


@lru_cache(maxsize=16)
def parse_exit(data: bytes) -> Exit:
    """Raises `SandboxLost` on what no runner says. Remembered, because most scripts end alike."""
    try:
        values: Any = json.loads(data)
        values["full"] = tuple(values["full"])
        ended = Exit(**{name: values[name] for name in Exit.__slots__})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SandboxLost("the runner sent an exit that makes no sense") from None
    numbers = (ended.status, ended.dropped_output, ended.dropped_error)
    flags = [ended.timed_out, ended.out_of_cpu_time, ended.oom]
    if ended.too_many_processes is not None:
        flags.append(ended.too_many_processes)
    sensible = all(type(number) is int and 0 <= number < 2**63 for number in numbers) and ended.status < 2**16
    sensible = sensible and all(type(flag) is bool for flag in flags)
    sensible = sensible and len(ended.full) <= _MOST_PLACES
    sensible = sensible and all(type(place) is str and _PLACE.fullmatch(place) for place in ended.full)
    if not sensible or not (os.WIFEXITED(ended.status) or os.WIFSIGNALED(ended.status)):
        raise SandboxLost("the runner sent an exit that makes no sense")
    return ended


def _last_line(text: str) -> str:
    """The last line with something in it, as `str.splitlines` would tell it, which takes a tenth of a second for 1 MiB."""
    text = text.rstrip()
    begins = max(map(text.rfind, _LINE_ENDS)) + 1
    return text[begins : begins + _LONGEST_LINE]


def judge(ended: Exit, timeout: float, limits: Limits, error_output: str) -> tuple[Ending, int | None, str]:
    """Returns the ending, the exit code (128 + n for signal n) and the message. timeout: seconds."""
    if ended.timed_out:
        return Ending.TIMED_OUT, None, f"Timeout: ran longer than {timeout:g} s"
    code = os.waitstatus_to_exitcode(ended.status)
    if code == 0:
        return Ending.COMPLETED, 0, ""
    exit_code = code if code > 0 else 128 - code
    if ended.out_of_cpu_time and -code == signal.SIGKILL:
        return Ending.TIMED_OUT, exit_code, f"CPU time: used more than {limits.cpu_seconds} s"
    last_line = _last_line(error_output)
    symptom = last_line if code > 0 else f"killed by signal {-code}, {_signal_name(-code)}"
    if ended.oom or _tells_of_memory(last_line, code):
        # Where the kernel killed a child of the script, the script failed for want of that child.
        killed = ended.oom and code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        message = f"Out of memory: used more than {limits.memory_mb} MB"
        return Ending.OUT_OF_MEMORY, exit_code, message if killed or not symptom else f"{message} ({symptom})"
    if met := _limit_met(ended, limits, last_line, code):
        return Ending.FAILED, exit_code, f"{met} ({symptom})\nexit code {exit_code}"
    if code < 0:
        return Ending.FAILED, exit_code, f"Killed by signal {-code} ({_signal_name(-code)})"
    return Ending.FAILED, exit_code, f"{last_line}\nexit code {code}" if last_line else f"exit code {code}"


def _tells_of_memory(last_line: str, code: int) -> bool:
    error = last_line.removeprefix("the sandbox could not start the script: ")
    return code > 0 and (error.startswith("MemoryError") or "[Errno 12]" in error)


def _limit_met(ended: Exit, limits: Limits, last_line: str, code: int) -> str:
    """The limit that a script failed at, in words; empty when it was none."""
    no_room = code > 0 and ("[Errno 28]" in last_line or "No space left on device" in last_line)
    no_page = -code == signal.SIGBUS  # of a mapped file: there is no room for it, or the file ends before it
    if no_room or no_page:
        # A process that outlives the script by a moment, as Python's for shared memory, may have made room again.
        full = "Disk full" if no_room or ended.full else "Perhaps disk full"
        places = " and ".join(ended.full) or "each writable place"
        return f"{full}: {places} {'hold' if len(ended.full) > 1 else 'holds'} {limits.disk}"
    if code > 0 and ("[Errno 24]" in last_line or "Too many open files" in last_line):
        return f"Too many open files: a process may have {limits.open_files}"
    no_process = "Resource temporarily unavailable" in last_line or "can't start new thread" in last_line
    if code > 0 and no_process and limits.processes and ended.too_many_processes is not False:
        perhaps = "Perhaps too" if ended.too_many_processes is None else "Too"
        return f"{perhaps} many processes: at most {limits.processes}, threads included"
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
