"""No law is broken, and nobody stands still for long, while nodes of a real cluster are killed, hung and drained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.history import FaultBegan, WorkerEnded
from tests.chaos.nodes import Clustered
from tests.chaos.places import OwnNodes
from tests.chaos.plan import Plan
from tests.chaos.run import run
from tests.chaos.timeline import summarize
from tests.conftest import require
from tests.support.cluster import find_cockroach, start_cluster

PLAN = Plan(tasks=1_000, submitting=25, kill_worker_every=12, faults=60)


@pytest.mark.parametrize("fault", ["kill", "hang", "drain", "restart", "quorum"])
async def test_no_law_is_broken(fault: str, tmp_path: Path) -> None:
    binary = find_cockroach()
    require("cockroach", binary is not None, "set COCKROACH_BIN, or put cockroach on PATH")
    assert binary is not None
    async with start_cluster(binary) as cluster:
        target = Clustered(cluster.url, OwnNodes(cluster))
        result = await run(PLAN, target, target.faults[fault], tmp_path, print)
    assert not result.violations, "\n".join(map(str, result.violations[:20]))
    summary = summarize(result.history)
    assert (summary.submitted, summary.records, summary.terminal) == (PLAN.tasks, PLAN.tasks, PLAN.tasks)
    broken = {event.name for event in result.history if isinstance(event, FaultBegan)}
    assert broken - {"healing"}, "nothing was ever broken"
    assert sum(event.killed for event in result.history if isinstance(event, WorkerEnded)) == PLAN.worker_kills
