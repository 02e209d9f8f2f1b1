"""Where pages find their style and script: at an address that changes with them, so that browsers may keep them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("static")
FOREVER = "public, max-age=31536000, immutable"


def address(name: str) -> str:
    """`/static/style.css?v=0123456789ab`."""
    return f"/static/{name}?v={version(name)}"


@cache
def version(name: str) -> str:
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()[:12]


def may_be_kept(path: str, asked: str) -> bool:
    """Whether the answer at a path is what its version says, and so will be for ever."""
    name = path.removeprefix("/static/")
    return path.startswith("/static/") and bool(asked) and (FOLDER / name).is_file() and asked == version(name)
