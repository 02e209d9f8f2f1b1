"""`python -m tests.attacks`: attack every kind of sandbox at hand, and show as a table what came of it.

Each attack is a task submitted through a database of the run's own and claimed by a real worker. The exit code is 0 when
everything is as it must be, 1 when an attack succeeded that must not, when one does not work even on the unprotected sandbox
(and so proves nothing), or when it is unclear what one did, 2 when the run could not take place.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog
import trio
from rich.console import Console

from continuum.sandbox.protocol import BackendUnavailable
from tests.attacks.attack import WORKER_MARK, Attack, Result
from tests.attacks.catalogue import ATTACKS, THEMES
from tests.attacks.probe import NotASandbox, this_host
from tests.attacks.table import TITLES, as_json, complaint, shown, table
from tests.attacks.targets import TARGETS, Range, make_database, missing, open_target
from tests.support.postgres import start_postgres

ENOUGH = 80
"""How many attacks, shown to work, the suite is to have."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", default=",".join(TARGETS), metavar="TARGETS", help=f"of {', '.join(TARGETS)}")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="attacks, parts of their names or themes, by commas"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--verbose", action="store_true", help="say what stopped each attack, or how it succeeded")
    parser.add_argument("--list", action="store_true", help="list the attacks and what they want; run none")
    return parser.parse_args()


def chosen(only: str) -> list[Attack]:
    words = [word.strip() for word in only.split(",") if word.strip()]
    themes = {attack.name: theme for theme, members in THEMES.items() for attack in members}
    return [
        attack
        for attack in ATTACKS
        if not words or any(word == themes[attack.name] or word in attack.name for word in words)
    ]


@dataclass
class Campaign:
    """A run: what was asked for, and what came of it."""

    attacks: list[Attack]
    targets: Sequence[str]
    console: Console
    verbose: bool
    results: dict[str, dict[str, Result]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        os.environ["CONTINUUM_ATTACK_SECRET"] = f"{WORKER_MARK}-environment"
        with this_host() as host:
            async with start_postgres("fsync = off") as server:
                for target in self.targets:
                    self.results[target] = {}
                    if target in self.missing:
                        continue
                    started = time.monotonic()
                    place = Range(make_database(server, target), host)
                    async with open_target(target, place, self.attacks) as opened:
                        await opened.run(self.attacks, self.note)
                    self.console.print(f"{TITLES[target]}: {time.monotonic() - started:.1f} s")

    def note(self, result: Result) -> None:
        self.results[result.target][result.attack] = result
        if self.verbose:
            self.console.print(
                f"{result.target} {result.attack}: {result.verdict} ({result.seconds:.2f} s): {result.detail}",
                markup=False,
            )

    def complaints(self) -> list[str]:
        by_name = {attack.name: attack for attack in self.attacks}
        return [
            f"{target} {name}: {said}"
            for target, found in self.results.items()
            for name, result in found.items()
            if (said := complaint(by_name[name], result))
        ]


def report(campaign: Campaign, *, everything: bool) -> int:
    complaints = campaign.complaints()
    counted = sum(shown(attack, campaign.results) for attack in campaign.attacks)
    console = campaign.console
    console.print(table(campaign.attacks, campaign.results, campaign.missing))
    for target, why in campaign.missing.items():
        console.print(f"{TITLES[target]} was not attacked: {why}", markup=False)
    opened = {
        (name, why) for attack in campaign.attacks for name, why in attack.open_on.items() if name in campaign.results
    }
    for name, why in sorted(opened):
        console.print(f"open on {name}: {why}", markup=False)
    if "control" in campaign.results and "control" not in campaign.missing:
        console.print(f"{counted} of {len(campaign.attacks)} attacks are shown to work where nothing protects")
        if everything and counted < ENOUGH:
            complaints.append(f"only {counted} attacks count, and {ENOUGH} are to")
    for said in complaints:
        console.print(said, markup=False)
    console.print("as it must be" if not complaints else f"{len(complaints)} complaints")
    return 1 if complaints else 0


def leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """What went wrong, without the nurseries around it."""
    for each in group.exceptions:
        yield from leaves(each) if isinstance(each, BaseExceptionGroup) else (each,)


def attack() -> int:
    asked = parse()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    attacks = chosen(asked.only)
    targets = [word.strip() for word in asked.on.split(",")]
    console = Console(stderr=asked.json, width=None if sys.stdout.isatty() else 130)
    if asked.list:
        for each in attacks:
            console.print(f"{each.name}: {each.wants}", markup=False)
        return 0
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not attacks:
        print(f"attack: {unknown or asked.only} names nothing that there is", file=sys.stderr)
        return 2
    campaign = Campaign(attacks, targets, console, asked.verbose)
    campaign.missing = {target: why for target in targets if (why := missing(target))}
    refusals: list[str] = []
    try:
        trio.run(campaign.run)
    except* (NotASandbox, BackendUnavailable) as group:
        refusals = [str(error) for error in leaves(group)]
    if refusals:
        print(f"attack: refused: {'; '.join(refusals)}", file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps(as_json(attacks, campaign.results, campaign.missing), indent=2))
        return 1 if campaign.complaints() else 0
    return report(campaign, everything=not asked.only)


if __name__ == "__main__":
    sys.exit(attack())
