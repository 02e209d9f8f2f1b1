"""Wake-ups by asking: quickly while there is work, ever more rarely while there is none."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import trio

from continuum.db.connection import TrioConnection
from continuum.model import Wakeup

QUICKEST = 0.02
"""Seconds between two looks right after there was work."""
SLOWEST = 1.0
"""Seconds between two looks when there has been none for a while."""
SLOWER = 1.5
"""Each look that finds nothing makes the next pause longer by this."""

_LOOK = "SELECT 1 FROM tasks WHERE status = 'pending' AND run_at IS NULL LIMIT 1"


async def poll_for_work(connection: TrioConnection) -> AsyncGenerator[Wakeup, None]:
    """Yield once, and then whenever a look finds something claimable."""
    yield Wakeup.PENDING
    pause = QUICKEST
    while True:
        await trio.sleep(pause)
        cursor = await connection.execute(_LOOK)
        if await cursor.fetchone() is None:
            pause = min(SLOWEST, pause * SLOWER)
        else:
            pause = QUICKEST
            yield Wakeup.PENDING
