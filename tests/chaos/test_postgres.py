"""No law is broken while everything between the workers and PostgreSQL is."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

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
# Runs wait most of the time, so that two go side by side, each with a server of its own.
@pytest.mark.parametrize(
    "runs",
    [
        [("delay", "read committed"), ("cut", "serializable")],
        [("swallow", "serializable"), ("all", "read committed")],
        [("all", "serializable"), ("refuse", "serializable")],
        [("reset", "read committed")],
    ],
    ids=lambda runs: " and ".join(f"{fault}, {isolation}" for fault, isolation in runs),
)
async def test_no_law_is_broken(runs: list[tuple[str, str]], tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for fault, isolation in runs:
            folder = tmp_path / fault
            folder.mkdir()
            nursery.start_soon(_break, fault, isolation, folder)


async def _break(fault: str, isolation: str, folder: Path) -> None:
    async with (
        start_postgres(f"default_transaction_isolation = '{isolation}'") as server,
        fault_proxy(server.port) as proxy,
    ):
        target = Proxied(server.url, server.port, proxy)
        result = await run(PLAN, target, target.faults[fault], folder, lambda what: print(f"{fault:8}{what}"))
        server_log = (server.data / "server.log").read_text()
    assert not result.complaints, "\n".join([f"{fault}, {isolation}:", *result.complaints[:20]])
    assert (CONFLICT in server_log) == (isolation == "serializable"), f"{fault}: whether transactions lost conflicts"
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
