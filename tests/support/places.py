"""Where tests keep what is many files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

ROOM = 4 * 1024**3
"""Bytes that nothing of the tests fills by far."""


def new_folder(prefix: str) -> Path:
    """An empty folder, in memory where there is room: a database is hundreds of files, an image thousands."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else "/tmp"))
