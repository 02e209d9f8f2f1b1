"""What `continuum submit` reads from files: the script, its payload, and what it requires."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

from continuum.db.errors import InvalidTask
from continuum.requirements import BadRequirements, parse_requirements

# The reference implementation's, of inline script metadata (PEP 723).
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


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


def inline_requirements(script: str) -> str | None:
    """The `dependencies` of a script's `# /// script` block, pinned as all requirements are; None without such a block.

    The Python of a sandbox is the image's: `requires-python` is not looked at. Raises `InvalidTask`.
    """
    blocks = [match["content"] for match in _BLOCK.finditer(script) if match["type"] == "script"]
    if not blocks:
        return None
    if len(blocks) > 1:
        raise InvalidTask("the script has more than one `# /// script` block")
    toml = "".join(line.removeprefix("#").removeprefix(" ") for line in blocks[0].splitlines(keepends=True))
    try:
        dependencies = tomllib.loads(toml).get("dependencies", [])
    except tomllib.TOMLDecodeError as error:
        raise InvalidTask(f"the script's `# /// script` block is no TOML: {error}") from None
    if not isinstance(dependencies, list) or not all(isinstance(each, str) for each in dependencies):
        raise InvalidTask("`dependencies` in the script's `# /// script` block is no list of texts")
    for dependency in dependencies:
        try:
            parse_requirements(dependency)
        except BadRequirements as error:
            reason = str(error).partition(": ")[2]
            raise InvalidTask(
                f"the script's dependencies: {reason}; or give a pinned list with --requirements "
                "(`uv export --script FILE.py` makes one)"
            ) from None
    return "\n".join(dependencies)
