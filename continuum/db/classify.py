"""Which failures are worth another try: the one place that knows, for both dialects.

docs/explanation/reliability.md has the table with what each class leads to; a test holds the two against each other.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from types import MappingProxyType

import psycopg

from continuum.db.advice import advice_on


class Kind(enum.Enum):
    """What a failure means for the caller.

    UNAVAILABLE: nothing happened; later, or on another node, it may work. UNKNOWN: the same, but a write that was under way
    may have happened. CONFLICT: nothing happened, and the same again at once may work. SCHEMA: it is missing or older than
    this version. FORBIDDEN: this user may not do it. BUG: the same again fails again.
    """

    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    SCHEMA = "schema"
    FORBIDDEN = "forbidden"
    BUG = "bug"


BY_SQLSTATE: Mapping[str, Kind] = MappingProxyType(
    {
        "08": Kind.UNKNOWN,
        "25006": Kind.UNAVAILABLE,
        "25P03": Kind.UNKNOWN,
        "25P04": Kind.UNKNOWN,
        "28": Kind.UNAVAILABLE,
        "3D": Kind.UNAVAILABLE,
        "3F000": Kind.SCHEMA,
        "40001": Kind.CONFLICT,
        "40003": Kind.UNKNOWN,
        "40P01": Kind.CONFLICT,
        "42501": Kind.FORBIDDEN,
        "42703": Kind.SCHEMA,
        "42P01": Kind.SCHEMA,
        "53": Kind.UNAVAILABLE,
        "55P03": Kind.CONFLICT,
        "57014": Kind.UNKNOWN,
        "57P": Kind.UNKNOWN,
        "58": Kind.UNAVAILABLE,
        "58C": Kind.UNKNOWN,
        "XXUUU": Kind.UNKNOWN,
    }
)
"""What the server's code, or how it begins, means; the longest that fits counts, and anything else is a bug."""

INTERNAL_BUT_TRANSIENT = (
    "try another",
    "not accepting clients",
    "node unavailable",
    "communication error",
    "rpc error",
    "breaker open",
    "result is ambiguous",
)
"""CockroachDB calls some failures of other nodes internal errors, and says so only in words."""

_MADE_BY_THE_CLIENT = (
    psycopg.ProgrammingError,
    psycopg.DataError,
    psycopg.NotSupportedError,
    psycopg.InternalError,
    psycopg.IntegrityError,
)


def classify(error: psycopg.Error) -> Kind:
    """What an error of the driver means."""
    state = error.sqlstate
    if state is None:
        # libpq's own words about a connection that is broken, or talks nonsense; psycopg has no finer class for some.
        return Kind.BUG if isinstance(error, _MADE_BY_THE_CLIENT) else Kind.UNKNOWN
    if state == "XX000" and any(words in str(error).lower() for words in INTERNAL_BUT_TRANSIENT):
        return Kind.UNKNOWN
    for length in (5, 3, 2):
        if state[:length] in BY_SQLSTATE:
            return BY_SQLSTATE[state[:length]]
    return Kind.BUG


def without_data(error: psycopg.Error) -> psycopg.Error:
    """The same error, with a text that quotes no row and no parameter. The server's DETAIL and CONTEXT may ("Failing row
    contains ..."), and so may all that its complaints about values put in quotes."""
    said = error.diag.message_primary
    if said is not None:
        if error.sqlstate is not None and error.sqlstate.startswith("22"):
            said = f"{_QUOTED.split(said, maxsplit=1)[0].rstrip(' :')} (SQLSTATE {error.sqlstate})"
        error.args = (f"{said}; {error.diag.message_hint}" if error.diag.message_hint else said,)
    return error


_QUOTED = re.compile("[\"'`]")
_ATTEMPT = re.compile(r"^- (?=host)", re.MULTILINE)


def describe(error: BaseException) -> str:
    """One line that says what went wrong and, where that is clear, what to do; of several hosts, for each of them."""
    text = str(error).strip() or type(error).__name__
    _, *attempts = _ATTEMPT.split(text)  # what comes before the list of attempts repeats the last of them
    lines = [" ".join(line.strip() for line in each.splitlines() if line.strip()) for each in attempts or [text]]
    return "; ".join([*lines, *dict.fromkeys(filter(None, map(advice_on, lines)))])
