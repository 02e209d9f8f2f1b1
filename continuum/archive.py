"""Finished tasks as JSON Lines, for the time after they are deleted from the database.

A file belongs to one writer: its name says whose it is, so that several workers share a directory, on a network as well. Each
batch is a gzip member of its own, on disk before `write` returns: whatever happens afterwards, what was written before can be
read. A file of an earlier day is never written to again.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from continuum.model import AttemptRecord, TaskRecord

LARGEST_FILE = 64 * 1024 * 1024
"""Bytes from which on a new file is begun."""
READABLE = 0o600
"""Payloads and outputs are nobody else's."""


def task_line(record: TaskRecord) -> str:
    """A task in one line, with the names and texts of the HTTP API's."""
    values = {each.name: _json(getattr(record, each.name)) for each in fields(record)}
    for name in ("id", "retry_of", "retried_as"):
        values[f"{name}_str"] = None if values[name] is None else str(values[name])
    values["depends_on_str"] = [str(each) for each in record.depends_on]
    values |= {name: None if values[name] is None else json.loads(values[name]) for name in ("payload", "retry")}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _json(value: object) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    if isinstance(value, AttemptRecord):
        return {each.name: _json(getattr(value, each.name)) for each in fields(value)}
    return value


@dataclass(slots=True)
class Archive:
    """The files of one writer in a directory that is there.

    owner: a name that no other writer has. Not for several threads at a time.
    """

    directory: Path
    owner: str
    _path: Path | None = None
    _descriptor: int = -1
    _size: int = 0
    _day: str = ""
    _number: int = field(default=0)

    def write(self, records: Sequence[TaskRecord]) -> Path:
        """Append tasks; return where they are once they are on disk. Raises OSError: then none of them counts as written, and
        the next ones go into another file."""
        lines = "".join(f"{task_line(record)}\n" for record in records)
        member = gzip.compress(lines.encode("utf-8", "surrogatepass"), 6)
        try:
            path = self._open_file()
            _write_all(self._descriptor, member)
            os.fsync(self._descriptor)
        except BaseException:
            self._abandon()
            raise
        self._size += len(member)
        return path

    def close(self) -> None:
        """Begin a new file the next time."""
        if self._path is not None:
            os.close(self._descriptor)
            self._path = None

    def _open_file(self) -> Path:
        """The file to append to: another one each day, when it is large, and when somebody took it away."""
        today = dt.datetime.now(dt.UTC).strftime("%Y%m%d")
        if self._path is not None and (today != self._day or self._size >= LARGEST_FILE or self._is_gone(self._path)):
            self.close()
        if self._path is None:
            self._number += 1
            path = self.directory / f"tasks-{today}-{self.owner}-{self._number:04}.jsonl.gz"
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, READABLE)
            self._path, self._size, self._day = path, 0, today
            _sync_directory(self.directory)
        return self._path

    def _is_gone(self, path: Path) -> bool:
        try:
            there, ours = path.stat(), os.fstat(self._descriptor)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _abandon(self) -> None:
        """Leave nothing half written behind what is whole."""
        if self._path is None:
            return
        with suppress(OSError):
            os.ftruncate(self._descriptor, self._size)
        if not self._size:
            with suppress(OSError):
                self._path.unlink()
        with suppress(OSError):
            self.close()
        self._path = None


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_directory(directory: Path) -> None:
    """So that a file's name is on disk as well as what is in it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
