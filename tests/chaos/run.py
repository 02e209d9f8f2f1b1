"""One run: work is submitted and done while things break, and everybody writes down what happened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from continuum.config import Settings
from continuum.db import open_database
from continuum.db.protocol import Database
from tests.chaos import control, history
from tests.chaos.checker import Violation, check, seconds_judged
from tests.chaos.fleet import Fleet
from tests.chaos.history import History, Recorder
from tests.chaos.observer import Observer
from tests.chaos.plan import Fault, Plan, Reporter, Target
from tests.chaos.producer import produce
from tests.chaos.shortfalls import HEALING, shortfalls

MIGRATION_DEADLINE = 60.0
LAST_LOOK_DEADLINE = 30.0


@dataclass(frozen=True)
class Result:
    """What was written down, which laws that breaks, and what it falls short of proving.

    judged: seconds, see `checker.seconds_judged`.
    """

    history: History
    violations: list[Violation]
    shortfalls: list[str]
    judged: float

    @property
    def complaints(self) -> list[str]:
        """A line for each reason not to call the run clean."""
        return [f"SHORTFALL  {each}" for each in self.shortfalls] + [f"VIOLATION  {each}" for each in self.violations]


class NotEmpty(Exception):
    """The database holds tasks already: workers of the run would execute them."""


async def run(plan: Plan, target: Target, fault: Fault, folder: Path, say: Callable[[str], None]) -> Result:
    """Run `plan` on `target` under `fault`, leave the histories and the workers' logs in `folder`, and judge.

    Raises NotEmpty, and whatever keeps the run from beginning.
    """
    await _prepare(target)
    async with open_database(Settings.model_validate({"database_url": target.watching})) as database:
        return await _run(plan, target, database, fault, folder, say)


async def _run(
    plan: Plan, target: Target, database: Database, fault: Fault, folder: Path, say: Callable[[str], None]
) -> Result:
    started = trio.current_time()

    def tell(what: str) -> None:
        say(f"{trio.current_time() - started:6.1f} s  {observer.terminal:5} of {plan.tasks} done  {what}")

    async def all_done() -> None:
        while observer.terminal < plan.tasks:
            await trio.sleep(0.1)

    async def all_ended() -> None:
        await all_done()
        await control.end(database)
        await observer.look()
        while observer.open:
            await trio.sleep(0.1)

    with (
        Recorder(folder / "run.jsonl") as record,
        Recorder(folder / "producer.jsonl") as producer_record,
        Recorder(folder / "observer.jsonl") as observer_record,
        closing(Observer(target.watching, observer_record)) as observer,
        closing(Fleet(plan, target.url, folder, record)) as fleet,
    ):
        report = Reporter(record, tell)
        await control.begin(plan, database, record)
        for _ in range(plan.workers):
            fleet.start()
        try:
            async with trio.open_nursery() as beside:
                beside.start_soon(observer.run)
                beside.start_soon(produce, plan, target.url, producer_record)
                with trio.move_on_after(plan.faults):
                    async with trio.open_nursery() as breaking:
                        breaking.start_soon(fault.run, report)
                        breaking.start_soon(_kill_workers, plan, fleet, tell)
                        await all_done()
                        breaking.cancel_scope.cancel()
                async with report.fault(HEALING, outage=True):
                    await target.heal()
                with trio.move_on_after(plan.finish):
                    await all_ended()
                beside.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await target.heal()
        await fleet.stop()
        with trio.fail_after(LAST_LOOK_DEADLINE):
            await observer.look_at_the_end()
        tell("everything has ended")
    events = history.read(folder)
    rules = replace(fault.rules, polling_interval=plan.polling_interval)
    judged = seconds_judged(events, rules)
    return Result(events, check(events, rules), shortfalls(plan, fault, events, judged), judged)


async def _kill_workers(plan: Plan, fleet: Fleet, tell: Callable[[str], None]) -> None:
    for _ in range(plan.worker_kills):
        await trio.sleep(plan.kill_worker_every)
        tell(f"{await fleet.kill_oldest() or 'nobody'} killed, {fleet.start()} takes its place")


async def _prepare(target: Target) -> None:
    """Apply the schema to a database that has no tasks."""
    async with open_database(Settings.model_validate({"database_url": target.watching})) as database:
        with trio.fail_after(MIGRATION_DEADLINE):
            await database.migrate()
            statistics = await database.statistics(latest=True)
    if statistics.pending or statistics.running or statistics.completed or statistics.failed:
        raise NotEmpty("the database holds tasks already: give the run an empty database of its own")
