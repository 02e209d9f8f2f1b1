"""No law is broken, and nobody stands still for long, while nodes of a real cluster are killed, hung and drained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.nodes import Clustered
from tests.chaos.places import OwnNodes
from tests.chaos.plan import Plan
from tests.chaos.run import run
from tests.conftest import require
from tests.support.cluster import find_cockroach, start_cluster

PLAN = Plan(tasks=1_000, submitting=30, kill_worker_every=12, faults=60)
LONG = replace(PLAN, submitting=75, faults=90)
"""Work from before something breaks until long after it."""


@pytest.fixture
def binary() -> str:
    found = find_cockroach()
    require("cockroach", found is not None, "set COCKROACH_BIN, or put cockroach on PATH")
    assert found is not None
    return found


@pytest.mark.parametrize("fault", ["kill", "hang", "drain", "restart", "quorum"])
async def test_no_law_is_broken(fault: str, binary: str, tmp_path: Path) -> None:
    async with start_cluster(binary) as cluster:
        target = Clustered(cluster.url, OwnNodes(cluster))
        result = await run(LONG if fault in ("hang", "quorum") else PLAN, target, target.faults[fault], tmp_path, print)
    assert not result.complaints, "\n".join(result.complaints[:20])
