"""What can go wrong with a task, from its producer's point of view.

TaskError                 a task that ended without the result that was asked for; `record` is all that is known of it
├─ TaskFailed             it failed, after its last attempt
│  ├─ TaskTimedOut        its time, or its CPU time, was over
│  ├─ TaskOutOfMemory     its memory was used up
│  ├─ TaskCancelled       somebody cancelled it
│  └─ TaskRefused         its code was refused before it ran (CODE_POLICY=reject)
└─ BadResult              it completed, and left no result, or not the one that was asked for
TaskNotFound              there is no such task
WaitTimeout               it had not ended in time
NotShippable              a function that cannot be run elsewhere, and why
"""

from __future__ import annotations

import re

from continuum.client.sources import Script
from continuum.model import Status, TaskRecord

LONGEST_TRACEBACK = 4000
"""Characters of a script's traceback that an exception carries; all of it is in `record.error_output`."""

_BEGINS = re.compile(
    r"(?:^  \+ Exception Group |(?<!\| )(?<!Group ))Traceback \(most recent call last\):$", re.MULTILINE
)  # and not those within a group
_GOES_ON = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


class TaskNotFound(LookupError):
    """There is no task with this id, or none of this batch."""


class WaitTimeout(TimeoutError):
    """The tasks that were waited for had not all ended in time."""


class NotShippable(TypeError):
    """A function that cannot be run in a sandbox as it is. `str()` says what it needs that is not there, and what to do."""


class TaskError(Exception):
    """A task ended without the result that was asked for.

    record: the task as it was read back. traceback: the script's own, with its own lines; empty when it left none.
    """

    def __init__(self, message: str, record: TaskRecord, traceback: str = "") -> None:
        super().__init__(message)
        self.record = record
        self.traceback = traceback

    @property
    def status(self) -> str:
        """How the task ended: a `Status` where it is a known one."""
        return self.record.status

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.record, self.traceback), self.__dict__


class TaskFailed(TaskError):
    """The task failed, after its last attempt."""


class TaskTimedOut(TaskFailed):
    """The script ran longer than it may, or used more CPU time."""


class TaskOutOfMemory(TaskFailed):
    """The script used more memory than it may."""


class TaskCancelled(TaskFailed):
    """Somebody cancelled the task."""


class TaskRefused(TaskFailed):
    """The code was found to be malicious, and not run."""


class BadResult(TaskError):
    """The task completed, but what it left is not the result that was asked for."""


def failure_of(record: TaskRecord, script: Script | None = None) -> TaskFailed:
    """The exception for a task that ended in anything but completion. script: what was shipped, where that is known."""
    traceback = _traceback_in(record.error_output or "")
    if script is not None:
        traceback = script.as_written(traceback)
    cause = (record.last_error or "").splitlines()
    where = script.last_place_in(traceback) if script is not None and traceback else ""
    name = f" ({record.name})" if record.name else ""
    message = f"task {record.id}{name} {record.status}: {cause[0] if cause else 'no reason given'}"
    failure = _kind_of(record)(f"{message} [{where}]" if where else message, record, traceback)
    if traceback:
        failure.add_note(f"In its sandbox:\n{traceback}")
    if cause and cause[0].startswith("ModuleNotFoundError: "):
        failure.add_note(
            "A sandbox has what its image has: pinned packages are given with `requirements`, or in a `# /// script` block."
        )
    return failure


def _kind_of(record: TaskRecord) -> type[TaskFailed]:
    """A script may write what it likes: only what the worker alone would say counts."""
    reason = record.last_error or ""
    if record.status == Status.CANCELLED:
        return TaskCancelled
    if record.status == Status.MALICIOUS:
        return TaskRefused
    if reason.startswith(("Timeout: ran longer than ", "CPU time: used more than ")):
        return TaskTimedOut
    return TaskOutOfMemory if reason.startswith("Out of memory: used more than ") else TaskFailed


def _traceback_in(error_output: str) -> str:
    """The last traceback that a script wrote, with those that led to it; else its last lines."""
    text = error_output.rstrip()
    begins = [match.start() for match in _BEGINS.finditer(text)]
    while len(begins) > 1 and text[: begins[-1]].rstrip().endswith(_GOES_ON):
        begins.pop()
    text = text[begins[-1] if begins else 0 :]
    if len(text) > LONGEST_TRACEBACK:
        text = "[...]\n" + text[-LONGEST_TRACEBACK:].partition("\n")[2]
    return text
