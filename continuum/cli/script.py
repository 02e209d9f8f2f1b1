"""What `continuum submit` reads from files: the script, its payload, and what it requires."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from continuum.client.sources import inline_requirements
from continuum.db.errors import InvalidTask
from continuum.requirements import BadRequirements, parse_requirements


def read_script(file: Path) -> str:
    """The text of a script; `-` is stdin. Raises `InvalidTask`."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTask(f"the script {file} cannot be read: {error}") from None


def read_payload(text: str) -> object:
    """JSON, or @FILE that holds it. Raises `InvalidTask`."""
    source = text
    try:
        if text.startswith("@"):
            source = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(source)
    except OSError as error:
        raise InvalidTask(f"--payload {text}: {error}") from None
    except ValueError as error:
        raise InvalidTask(f"--payload is not JSON: {error}") from None


def read_requirements(file: Path | None, script: str) -> str | None:
    """What a script requires: the file's lines where one is given, else the dependencies that the script itself lists.

    Raises `InvalidTask`.
    """
    if file is None:
        return inline_requirements(script)
    try:
        text = file.read_text(encoding="utf-8")
        parse_requirements(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTask(f"--requirements {file} cannot be read: {error}") from None
    except BadRequirements as error:
        raise InvalidTask(f"--requirements {file}, {error}") from None
    return text
