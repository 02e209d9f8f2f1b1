"""Turns of lower priorities: so that they run, though there is always something more urgent.

With PRIORITY_SHARE a worker takes that part of its tasks from lower priorities. Such a claim looks beyond the priority that had
the last turn, so that each that waits has one, and costs what any claim costs: nothing is counted, marked or moved in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class LowerTurns:
    """Whose turn it is. Priorities are numbers, of which lower ones are more urgent."""

    _credit: float = 0.0
    _last: int | None = None
    _found: bool = False
    """Whether there was anything lower since the most urgent one had its turn."""

    def beyond(self, wanted: int) -> int | None:
        """Beyond which priority a claim of so many tasks looks; None where it is an ordinary one."""
        return self._last if self._credit >= wanted else None

    def note(self, priorities: Sequence[int], share: float, *, beyond: int | None) -> None:
        """A claim found tasks of these priorities, in order. share: of all tasks, those that lower priorities get."""
        self._credit += share * len(priorities)
        if beyond is None:
            if priorities and self._last is None:
                self._last = priorities[0]
        elif priorities:
            self._credit = max(0.0, self._credit - len(priorities))
            self._last, self._found = priorities[0], True
        else:  # all had their turns; where nobody had one, nobody need be looked for soon
            self._credit = self._credit if self._found else 0.0
            self._last, self._found = None, False
