"""What a script imports beside the standard library: a pinned list, in the lines of a requirements file.

Only `NAME==VERSION` is taken, with extras, markers and hashes. Options, URLs and paths are refused: whoever writes the list
must not choose where packages come from. The list is read where it is submitted and again where it is installed, because
rows of CODES come from other hands, too; what is stored and installed is the normalised text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LARGEST_LIST = 256 * 1024
"""Characters of a whole list, hashes and comments included."""
LONGEST_REQUIREMENT = 500
"""Characters of one requirement without its hashes: the parser is recursive, and works for whoever writes to the table."""
LONGEST_LINE = 64 * 1024
"""Characters of one requirement with its hashes, continued lines joined: room for some hundred hashes."""
MOST_REQUIREMENTS = 500
"""Of one list, repeated ones included: each costs time to read, in the worker's one thread."""
HASHES = {"sha256": 64, "sha384": 96, "sha512": 128}
"""The kinds of hashes that installers trust, with the number of their hex digits."""

_HASH = re.compile(r"(\w+):([0-9a-f]+)")
_HASH_OPTION = re.compile(r"(?:^|\s)--hash(?:=|\s+)(\S*)")
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_OPTION = re.compile(r"(?:^|\s)(--?[A-Za-z][\w-]*)")
_ADDRESS = re.compile(r"^[.~/\\]|[/\\]|@|\.(?:whl|zip|tar\.\w+|tgz)$")
# What may stand in a marker: nothing that an installer would read as a comment, an option or a variable.
_PLAIN_MARKER = re.compile(r"""(?:[\w.<>=!~()"',+*]|\s(?!-)|(?<!\s)-)*""", re.ASCII)


class BadRequirements(ValueError):
    """A list that cannot be used. `str()` names the line, and says what is allowed."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """A list in its normal form: equal lists have equal `lines`, and so the same `digest`.

    lines: one requirement each, in the order of their names, with its hashes in the same line.
    """

    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as a file holds them; empty when nothing is required."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def digest(self) -> str:
        """64 hex digits that stand for this list."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Pin:
    """One requirement in its normal form, and the number of the line where it began."""

    line: int
    name: str
    text: str
    conditional: bool
    hashes: tuple[str, ...]

    @property
    def normalised(self) -> str:
        return " ".join((self.text, *(f"--hash={each}" for each in self.hashes)))


@lru_cache(maxsize=32)
def parse_requirements(text: str) -> Requirements:
    """Read a list. Blank lines, comments and continued lines (a backslash at the end) are as in a requirements file.

    Raises `BadRequirements` at the first line that is not a pinned requirement, for a package that is named twice, and for
    hashes that only some of the requirements have.
    """
    if len(text) > LARGEST_LIST:
        raise BadRequirements(f"the list has {len(text)} characters; at most {LARGEST_LIST} are allowed")
    pins: dict[str, _Pin] = {}
    for count, (number, content) in enumerate(_logical_lines(text), 1):
        if count > MOST_REQUIREMENTS:
            raise BadRequirements(f"line {number}: at most {MOST_REQUIREMENTS} requirements are allowed")
        if len(content) > LONGEST_LINE:
            raise BadRequirements(f"line {number}: has {len(content)} characters; at most {LONGEST_LINE} are allowed")
        pin = _parse_line(number, content)
        pins.setdefault(pin.normalised, pin)
    _check_together(list(pins.values()))
    return Requirements(tuple(sorted(pins)))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line with something in it, continued ones joined, with the number of its first; comments are left out."""
    began, parts = 0, list[str]()
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        if not parts:
            began = number
        # A comment takes the backslash at its end with it.
        bare = _COMMENT.sub("", raw).rstrip()
        parts.append(bare.removesuffix("\\"))
        if bare.endswith("\\"):
            continue
        if joined := " ".join(parts).strip():
            yield began, joined
        parts = []
    if joined := " ".join(parts).strip():
        yield began, joined


def _parse_line(line: int, content: str) -> _Pin:
    hashes = tuple(sorted({_check_hash(line, each) for each in _HASH_OPTION.findall(content)}))
    bare = _HASH_OPTION.sub("", content).strip()
    if not bare:
        raise BadRequirements(f"line {line}: a hash without a requirement; end the line before it with a backslash")
    if len(bare) > LONGEST_REQUIREMENT:
        raise BadRequirements(f"line {line}: has {len(bare)} characters; at most {LONGEST_REQUIREMENT} are allowed")
    before_marker = bare.partition(";")[0].strip()
    if option := _OPTION.search(before_marker):
        raise BadRequirements(
            f"line {line}: the option {option[1]} is not allowed; only --hash is, after a requirement"
        )
    if _ADDRESS.search(before_marker):
        raise BadRequirements(f"line {line}: a URL or a path is not allowed; use NAME==VERSION")
    try:
        requirement = Requirement(bare)
    except (InvalidRequirement, RecursionError):
        raise BadRequirements(f"line {line}: {bare[:60]!r} is no requirement; use NAME==VERSION") from None
    (operator, version) = _only_clause(requirement)
    if operator != "==" or version.endswith(".*"):
        raise BadRequirements(f"line {line}: {bare[:60]!r} is not pinned; use {requirement.name}==VERSION")
    name = canonicalize_name(requirement.name)
    extras = ",".join(sorted({canonicalize_name(extra) for extra in requirement.extras}))
    marker = str(requirement.marker) if requirement.marker else ""
    if not _PLAIN_MARKER.fullmatch(marker):
        raise BadRequirements(f"line {line}: its marker holds a character that is not allowed")
    text = f"{name}{f'[{extras}]' if extras else ''}=={Version(version)}{f' ; {marker}' if marker else ''}"
    return _Pin(line, name, text, bool(marker), hashes)


def _only_clause(requirement: Requirement) -> tuple[str, str]:
    """Operator and version of a requirement with one clause; two empty texts for any other."""
    clauses = list(requirement.specifier)
    return (clauses[0].operator, clauses[0].version) if len(clauses) == 1 else ("", "")


def _check_hash(line: int, text: str) -> str:
    match = _HASH.fullmatch(text.lower())
    if match is None or HASHES.get(match[1]) != len(match[2]):
        raise BadRequirements(f"line {line}: {text[:80]!r} is no hash; use --hash=sha256: and 64 hex digits")
    return match[0]


def _check_together(pins: list[_Pin]) -> None:
    """What no line can be blamed for alone."""
    first: dict[str, _Pin] = {}
    for pin in pins:
        earlier = first.setdefault(pin.name, pin)
        # With markers, one of several may be meant for each version of Python.
        if earlier is not pin and not (pin.conditional and earlier.conditional):
            raise BadRequirements(f"line {pin.line}: {pin.name} is required in line {earlier.line} already")
    without = [pin for pin in pins if not pin.hashes]
    if without and len(without) < len(pins):
        raise BadRequirements(
            f"line {without[0].line}: {without[0].name} has no hash, but others have; give hashes for all or for none"
        )
