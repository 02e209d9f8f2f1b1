"""Wake-ups by the clock: quickly while work flows, ever more rarely while there is none.

Nothing is asked here. A worker that is woken asks by trying to claim, which costs one small read where there is nothing,
and which one without a free slot leaves out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from continuum.db.protocol import Listener
from continuum.model import Wakeup

QUICKEST = 0.02
"""Seconds between two looks while there is work."""
SLOWER = 1.5
"""Each look that finds nothing makes the next pause longer by this."""
BESIDE_A_FEED = 2.0
"""Seconds between two looks while somebody else tells of work: a feed that falls silent costs no more than this."""


def wake_for_everything(listener: Listener) -> None:
    """For what may have come while nobody told of it."""
    for wakeup in Wakeup:
        listener.wake(wakeup)


async def wake_at_intervals(listener: Listener, longest: float, told: Callable[[], bool] = lambda: False) -> None:
    """Wake for work again and again; never return.

    longest: seconds between two wake-ups when there has been no work for a while.
    told: whether something else wakes for work at this time.
    """
    pause = QUICKEST
    while True:
        claimed = listener.claimed
        if told():
            pause = QUICKEST
            await trio.sleep(min(longest, BESIDE_A_FEED))
        else:
            await trio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
        pause = QUICKEST if listener.claimed != claimed else min(longest, pause * SLOWER)
        listener.wake(Wakeup.PENDING)
        listener.wake(Wakeup.GATED)
