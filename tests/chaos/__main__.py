"""`python -m tests.chaos`: submit work, break what workers depend on, and prove that no task was lost.

Where it runs is said by the environment:

- DATABASE_URL, all nodes of a cluster and an empty database of the run's own, with the commands that break a node:
  CHAOS_NODES="roach1 roach2 roach3", CHAOS_KILL="docker kill {node}", CHAOS_START="docker start {node}", and, if they should
  be tried, CHAOS_DRAIN, CHAOS_PAUSE, CHAOS_RESUME. A node counts as started when the command has ended.
- with --place compose, the cluster of deploy/cockroach-compose.yml, which must be up; in a database of the run's own;
- else, with `cockroach` on PATH (or named by COCKROACH_BIN), a cluster of three nodes on loopback, removed afterwards;
- else a PostgreSQL on loopback behind a proxy that misbehaves.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import trio

from tests.chaos.places import NoPlace, open_place
from tests.chaos.plan import Plan
from tests.chaos.run import NotEmpty, Result, run
from tests.chaos.timeline import summarize, timeline
from tests.support.compose import ComposeFailed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plan = Plan()
    parser.add_argument("--fault", help="what is broken; without it, the first that the place offers")
    parser.add_argument(
        "--place", choices=["named", "compose", "cluster", "postgres"], help="where, instead of by the environment"
    )
    parser.add_argument("--isolation", help="default_transaction_isolation of the PostgreSQL, such as serializable")
    parser.add_argument(
        "--interval", type=float, default=5.0, metavar="SECONDS", help="between two nodes (%(default)s)"
    )
    parser.add_argument("--down", type=float, default=3.0, metavar="SECONDS", help="that a node is away (%(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the history and the workers' logs here")
    parser.add_argument("--quiet", action="store_true", help="leave out the timeline")
    for name in ("tasks", "workers", "slots", "worker_kills"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plan, name), help="%(default)s")
    for name in ("submitting", "lease", "polling_interval", "kill_worker_every", "faults", "finish"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=getattr(plan, name), metavar="SECONDS", help="%(default)s")
    return parser.parse_args()


async def main(arguments: argparse.Namespace, folder: Path) -> Result:
    chosen = {each.name: getattr(arguments, each.name) for each in fields(Plan) if hasattr(arguments, each.name)}
    plan = replace(Plan(), **chosen)
    async with open_place(arguments.place, arguments.isolation, arguments.interval, arguments.down) as target:
        name = arguments.fault or next(iter(target.faults))
        if name not in target.faults:
            raise NoPlace(f"--fault {name}: use one of {', '.join(target.faults)}")
        print(f"{plan.tasks} tasks, {plan.workers} workers, fault: {name}", flush=True)
        return await run(plan, target, target.faults[name], folder, lambda line: print(line, flush=True))


def report(result: Result, quiet: bool) -> int:
    if not quiet:
        print()
        for line in timeline(result.history):
            print(line)
    summary = summarize(result.history)
    print(
        f"\n{summary.submitted} tasks acknowledged, {summary.records} in the record, {summary.terminal} of them terminal "
        f"({summary.completed} completed, {summary.failed} failed) after {summary.attempts} attempts in "
        f"{summary.duration:.1f} s; longest pause between outcomes {summary.longest_pause:.1f} s"
    )
    print(f"law 7 was judged for {result.judged:.1f} s of workers that had a slot free")
    for complaint in result.complaints[:50]:
        print(complaint)
    if len(result.complaints) > 50:
        print(f"... and {len(result.complaints) - 50} more")
    print(f"verdict: {verdict(result)}")
    return 1 if result.complaints else 0


def verdict(result: Result) -> str:
    if result.violations:
        return "BROKEN"
    return "no law was broken, but too little happened" if result.shortfalls else "clean, every law held"


def leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """What went wrong, without the nurseries around it."""
    for each in group.exceptions:
        yield from leaves(each) if isinstance(each, BaseExceptionGroup) else (each,)


def chaos() -> int:
    """What a shell gets to know: 0 when every law held, 1 when one was broken or too little happened to tell, 2 when the
    run could not take place."""
    asked = parse()
    reasons: list[BaseException] = []
    try:
        with tempfile.TemporaryDirectory(prefix="continuum-chaos-") as temporary:
            folder = asked.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.glob("*.jsonl")):
                raise NoPlace(f"--folder {folder} holds a history already")
            return report(trio.run(main, asked, folder), asked.quiet)
    except* (NoPlace, NotEmpty, ComposeFailed) as group:
        reasons += leaves(group)
    for reason in reasons:
        print(f"chaos: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(chaos())
