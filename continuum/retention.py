"""How long finished tasks are kept: one number of days for all, or others for some of the states in which a task may end."""

from __future__ import annotations

from continuum.model import TERMINAL, Status

DAY = 86_400.0
LONGEST = 1_000_000.0
"""Days: no database counts much further back."""


def parse_retention(text: str) -> dict[Status, float]:
    """Read `7`, `7,failed=90` or `failed=90`: days for every status, and for one. 0 keeps for ever.

    Returns the seconds after its end at which a task is deleted, for each status of which any are. Raises ValueError.
    """
    days = dict.fromkeys(sorted(TERMINAL), 0.0)
    named = {}
    for number, part in enumerate(text.split(",")):
        name, equals, value = (each.strip().lower() for each in part.rpartition("="))
        if not equals and number == 0:
            days = dict.fromkeys(days, _days(value))
        elif name in days and name not in named:
            named[Status(name)] = _days(value)
        else:
            raise _not_understood()
    return {status: each * DAY for status, each in (days | named).items() if each}


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        raise _not_understood() from None
    if not 0 <= days <= LONGEST:
        raise _not_understood()
    return days


def _not_understood() -> ValueError:
    return ValueError(
        f"use a number of days, at least 0, and others by status ({', '.join(sorted(TERMINAL))}), as in 7,failed=90"
    )
