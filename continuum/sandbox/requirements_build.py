"""The worker's end of an installation: what to install from where, the conversation with the installer, and its verdict.

Nothing that comes out of a builder is trusted: it parsed files that anybody may have published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from continuum.config import PackageIndex
from continuum.requirements import BadRequirements, Requirements
from continuum.sandbox.channel import prefixed
from continuum.sandbox.protocol import RequirementsFailed

PLACE = "/requirements"
"""Where a sandbox has its layer."""
UV = "/opt/continuum/uv"
"""Where a builder has uv."""
LARGEST_ANSWER = 128 * 1024
LONGEST_QUOTE = 4000
"""Characters kept of what uv said."""

_FOR_GOOD = (
    "No solution found when resolving dependencies",
    "Hash mismatch for",
    "Hash-checking is required",
)
"""What uv says of lists that no other attempt can install. All else may pass: a network, a disk, an index in trouble."""
_DENIED = ("401 Unauthorized", "403 Forbidden")
"""An index that wants a password hides what it has: that is for its operator to mend, not the list's fault."""
_FULL = "os error 28"
_CHATTER = ("Using ", "Resolved ", "Prepared ", "warning: ")
_KILLED = -9
_LEFT_OUT = "\n[...]\n"


@dataclass(frozen=True, slots=True)
class Installation:
    """One list to be installed by a builder. uid: the user that uv runs as. certificates: PEM text of what TLS is to
    trust, empty for what uv trusts by itself. max_mb: the size of the builder's tmpfs, and what the layer's files may have."""

    requirements: Requirements
    index: PackageIndex
    uid: int
    max_mb: int
    certificates: str = ""

    async def run(self, builder: trio.abc.Stream) -> int:
        """Talk to the builder behind a stream until it ends; return the bytes that the layer takes on disk.

        Raises `BadRequirements` or `RequirementsFailed`, with uv's own words where they are the reason.
        """
        text = self.requirements.text
        configuration = {
            "uv": UV,
            "place": PLACE,
            "uid": self.uid,
            "index": self.index.url,
            "certificates": self.certificates,
            "requirements": text,
            "max_mb": self.max_mb,
            "hashes": "--hash=" in text,
        }
        program = Path(__file__).with_name("requirements_installer.py").read_bytes()
        try:
            await builder.send_all(prefixed(program) + prefixed(json.dumps(configuration).encode()))
            answer = b""
            while len(answer) <= LARGEST_ANSWER and (piece := await builder.receive_some(LARGEST_ANSWER)):
                answer += piece
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RequirementsFailed("the builder ended early") from error
        return self._judge(_parse(answer))

    def _judge(self, answer: Mapping[str, Any]) -> int:
        size = answer.get("bytes")
        if type(size) is int and size >= 0:
            return size
        step, code, everything = answer.get("step"), answer.get("code"), str(answer.get("said", ""))
        said = self._quote(everything)
        if step == "host":
            raise RequirementsFailed(f"no room on this host for what was installed: {said}")
        if step == "copy":
            raise BadRequirements(f"a package cannot be used: {said}")
        if step == "install" and _FULL in everything:
            raise BadRequirements(f"they need more than the {self.max_mb} MB of REQUIREMENTS_MAX_MB: {said}")
        if step == "install" and code == _KILLED:
            raise RequirementsFailed(f"uv was killed, most likely for want of memory (CONTAINER_MEMORY_MB): {said}")
        if (
            step == "install"
            and any(words in everything for words in _FOR_GOOD)
            and not any(word in everything for word in _DENIED)
        ):
            raise BadRequirements(said)
        raise RequirementsFailed(said or "the builder gave an answer that makes no sense")

    def _quote(self, said: str) -> str:
        """What uv said, without its chatter and the index's password, fit for a column of text."""
        if password := urlsplit(self.index.url).password:
            said = said.replace(password, "****")
        lines = [line.rstrip() for line in said.splitlines()]
        told = "\n".join(line for line in lines if line and not line.startswith(_CHATTER))
        if len(told) > LONGEST_QUOTE:  # it begins with what went wrong, and ends with why
            half = (LONGEST_QUOTE - len(_LEFT_OUT)) // 2
            told = told[:half] + _LEFT_OUT + told[-half:]
        return "".join(
            letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in told
        )


def _parse(answer: bytes) -> dict[str, Any]:
    try:
        values = json.loads(answer)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise RequirementsFailed("the builder ended without an answer")
    return values
