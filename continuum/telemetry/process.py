"""What the worker's process uses, under the names of the semantic conventions; read from /proc when somebody asks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from continuum.telemetry.measures import Measure, Observed, Values

_STARTED = time.monotonic()
_PAGE = os.sysconf("SC_PAGE_SIZE")


def process_measures() -> list[Measure]:
    """The measures of this process."""
    return [
        Observed(
            "process.cpu.time",
            "s",
            "Processor time of the worker's process, without its sandboxes",
            _cpu,
            ["cpu.mode"],
            kind="counter",
        ),
        Observed("process.memory.usage", "By", "Physical memory in use", _memory),
        Observed("process.thread.count", "{thread}", "Threads", lambda: {(): threading.active_count()}),
        Observed("process.unix.file_descriptor.count", "{file_descriptor}", "Open file descriptors", _descriptors),
        Observed("process.uptime", "s", "Time since the process started", lambda: {(): time.monotonic() - _STARTED}),
    ]


def _cpu() -> Mapping[Values, float]:
    times = os.times()
    return {("user",): times.user, ("system",): times.system}


def _memory() -> Mapping[Values, float]:
    try:
        return {(): int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE}
    except OSError:
        return {}


def _descriptors() -> Mapping[Values, float]:
    try:
        return {(): len(os.listdir("/proc/self/fd"))}
    except OSError:
        return {}
