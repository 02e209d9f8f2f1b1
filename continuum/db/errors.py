"""What can go wrong with a database, from a caller's point of view.

    DatabaseError                 anything below
    ├─ DatabaseUnavailable        transient: the same call may succeed later (connection lost, node draining, deadline)
    │  └─ OutcomeUnknown          transient, and the statement may or may not have taken effect: resolve it by reading
    ├─ SchemaMismatch             the schema is missing or older than this worker: run `continuum migrate`
    ├─ NotPermitted               the database's user may not do what was asked: its owner can grant it
    ├─ DialectMismatch            DB_DIALECT names another database than the one that answers
    ├─ InvalidTask                the database refused what a producer submitted, and says why
    │  └─ InvalidSchedule         the same, of a schedule
    ├─ InvalidLimit               a limit that LIMITS cannot hold, and why
    └─ QueueFull                  as many tasks are pending as LIMITS allows: nothing was submitted; try again later

Anything else that escapes an adapter (a psycopg ProgrammingError, say) is a bug and ends the worker.
"""

from __future__ import annotations


class DatabaseError(Exception):
    """Something went wrong with the database."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be used right now; the call did nothing and may be repeated later."""


class OutcomeUnknown(DatabaseUnavailable):
    """The connection broke before the answer came: the statement may or may not have taken effect."""


class SchemaMismatch(DatabaseError):
    """The database's schema is not the one this version needs."""


class NotPermitted(DatabaseError):
    """The database's user lacks a privilege; the message says which, and who can grant it."""


class DialectMismatch(DatabaseError):
    """DB_DIALECT does not fit the server."""


class InvalidTask(DatabaseError):
    """The database refused a submitted task."""


class InvalidSchedule(InvalidTask):
    """A schedule cannot be stored as it is; the message has a line for each field."""


class InvalidLimit(DatabaseError):
    """A limit that cannot be kept as it is written."""


class QueueFull(DatabaseError):
    """More tasks would be pending than LIMITS allows, so that none of them was submitted.

    tenant: whose limit it is, "" that of tasks without a tenant; None for the whole queue's. limit, pending, refused: how many
    may be pending, were so (as of the last count), and were to be submitted. retry_after: seconds after which there may be room.
    """

    def __init__(self, tenant: str | None, limit: int, pending: int, refused: int, retry_after: float) -> None:
        whose = "" if tenant is None else f" of tenant {tenant!r}" if tenant else " without a tenant"
        message = f"{pending} tasks{whose} are pending and LIMITS allows {limit}: no room for {refused} more"
        if refused > limit:
            message += f", nor will there ever be; submit at most {limit} together" if limit else "; none is taken"
        else:
            message += f"; try again in {retry_after:g} s"
        super().__init__(message)
        self.tenant = tenant
        self.limit = limit
        self.pending = pending
        self.refused = refused
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.tenant, self.limit, self.pending, self.refused, self.retry_after)
