"""Which failures are worth another try: the one place that knows, for both dialects.

| what the server or the driver says                          | what it becomes                                        |
|-------------------------------------------------------------|--------------------------------------------------------|
| no sqlstate (connection lost, refused, timed out), 08xxx    | unavailable; unknown outcome when a write was under way |
| 57P01-57P05 (shutdown, crash, starting), 57014 (cancelled)  | the same                                               |
| 53xxx (no connections, memory or disk), 58xxx (system)      | unavailable                                            |
| 40001, 40P01 (serialization, deadlock), 55P03 (lock)        | conflict: tried again at once, with jitter             |
| 40003 (statement completion unknown)                        | unknown outcome                                        |
| XXUUU (CockroachDB has no code for it), XX000 of a dead node | the same: what nodes say when they lose each other     |
| 25006 (read only: a standby answers), 0A000 of a standby    | unavailable: another host may be the primary           |
| 42P01, 42703, 3F000 (no such table, column, schema)         | the schema is missing or older                         |
| 28xxx (password), 3D000 (no such database)                  | unavailable, said plainly                              |
| anything else                                               | a bug; it ends the worker                              |
"""

from __future__ import annotations

import enum

import psycopg


class Kind(enum.Enum):
    """What a failure means for the caller."""

    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    SCHEMA = "schema"
    BUG = "bug"


_UNAVAILABLE = ("53", "58", "28", "3D")
_INTERRUPTED = ("08", "57P")
_UNCATEGORIZED = "XXUUU"
_NODE = ("try another node", "breaker", "not accepting clients", "result is ambiguous", "rpc error")


def classify(error: psycopg.Error) -> Kind:
    """What an error of the driver means. UNKNOWN means: it may have happened, if the statement writes."""
    state = error.sqlstate
    if state is None:
        return Kind.UNKNOWN if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else Kind.BUG
    if state in ("40001", "40P01", "55P03"):
        return Kind.CONFLICT
    if state in ("40003", "57014", _UNCATEGORIZED) or state.startswith(_INTERRUPTED):
        return Kind.UNKNOWN
    if state.startswith(_UNAVAILABLE) or state == "25006":
        return Kind.UNAVAILABLE
    if state.startswith("XX"):
        return Kind.UNKNOWN if any(words in str(error) for words in _NODE) else Kind.BUG
    if state in ("42P01", "42703", "3F000"):
        return Kind.SCHEMA
    return Kind.BUG


def describe(error: BaseException) -> str:
    """One line that says what went wrong, without the driver's advice on where it came from."""
    text = str(error).strip() or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
