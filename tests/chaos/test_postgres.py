"""No law is broken while everything between the workers and PostgreSQL is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.plan import Plan
from tests.chaos.proxied import Proxied
from tests.chaos.run import NotEmpty, run
from tests.chaos.timeline import timeline
from tests.support.postgres import require_postgres, start_postgres
from tests.support.proxy import fault_proxy

PLAN = Plan(tasks=500, submitting=15, script=(0.02, 0.2), lease=4, kill_worker_every=4, faults=30, finish=60)
CONFLICT = "could not serialize access"


@pytest.fixture(autouse=True)
def _postgres() -> None:
    require_postgres()


# What they share, a conflict within an outage, is in all of them: each fault alone needs one level of isolation.
@pytest.mark.parametrize(
    ("fault", "isolation"),
    [
        ("refuse", "serializable"),
        ("reset", "read committed"),
        ("swallow", "serializable"),
        ("delay", "read committed"),
        ("cut", "serializable"),
        ("all", "read committed"),
        ("all", "serializable"),
    ],
)
async def test_no_law_is_broken(fault: str, isolation: str, tmp_path: Path) -> None:
    async with (
        start_postgres(f"default_transaction_isolation = '{isolation}'") as server,
        fault_proxy(server.port) as proxy,
    ):
        target = Proxied(server.url, server.port, proxy)
        result = await run(PLAN, target, target.faults[fault], tmp_path, print)
        server_log = (server.data / "server.log").read_text()
    assert not result.complaints, "\n".join(result.complaints[:20])
    assert (CONFLICT in server_log) == (isolation == "serializable"), "whether transactions lost conflicts"
    lines = list(timeline(result.history))
    assert any("BROKEN" in line for line in lines)
    assert any("killed -9" in line for line in lines)


async def test_a_run_does_not_begin_where_there_are_tasks_of_somebody_else(tmp_path: Path) -> None:
    async with start_postgres() as server, fault_proxy(server.port) as proxy:
        target = Proxied(server.url, server.port, proxy)
        plan = Plan(tasks=1, submitting=0, workers=1, worker_kills=0, faults=10, finish=10)
        (tmp_path / "first").mkdir()
        assert not (await run(plan, target, target.faults["delay"], tmp_path / "first", print)).violations
        with pytest.raises(NotEmpty, match="empty database of its own"):
            await run(plan, target, target.faults["delay"], tmp_path, print)
