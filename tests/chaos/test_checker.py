"""The checker itself: it passes what is right, and catches each law's breach, in histories that nobody lived through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continuum.model import Lease
from tests.chaos import checker, forge, history, mutations
from tests.chaos.checker import Rules, check, seconds_judged

RULES = Rules(polling_interval=1.0, bound=2.0, recovery=3.0)

BREACHES = [
    pytest.param(mutation, law, id=mutation.__name__)
    for law, mutations in {
        checker.ONE_STATE: mutations.LAW_1,
        checker.ONE_LEASE: mutations.LAW_2,
        checker.NO_LOSS: mutations.LAW_3,
        checker.NO_WAIT: mutations.LAW_7,
        checker.LIMITS: mutations.LIMITS,
        checker.ORDER: mutations.ORDER,
        checker.SCHEDULES: mutations.SCHEDULES,
        checker.COMPLETE: mutations.COMPLETENESS,
        checker.SURVIVAL: mutations.SURVIVES,
    }.items()
    for mutation in mutations
]


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.integers(1, 12))
def test_a_history_in_which_no_law_was_broken_passes(seed: int, tasks: int) -> None:
    assert check(forge.forge(Random(seed), tasks), RULES) == []


@pytest.mark.parametrize(("mutation", "law"), BREACHES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(), tasks=st.integers(1, 6))
def test_a_breach_is_caught_wherever_it_happens(mutation: mutations.Mutation, law: str, seed: int, tasks: int) -> None:
    random = Random(seed)
    broken = mutation(forge.forge(random, tasks), random)
    found = check(broken, RULES)
    assert law in {violation.law for violation in found}, found
    assert all(str(violation) for violation in found)


def test_an_empty_history_passes() -> None:
    assert check([], RULES) == []


def test_a_task_may_wait_through_an_outage() -> None:
    random = Random(1)
    broken = mutations.task_is_forgotten(forge.forge(random), random)
    assert checker.NO_WAIT in {violation.law for violation in check(broken, RULES)}
    always = [history.FaultBegan(at=0, wall=0, name="always", outage=True), *broken]
    assert checker.NO_WAIT not in {violation.law for violation in check(always, RULES)}


def test_a_task_may_wait_while_the_database_answers_nobody() -> None:
    random = Random(1)
    broken = mutations.task_is_forgotten(forge.forge(random), random)
    looks = [event for event in broken if isinstance(event, history.Looked)]
    silent = [event for event in broken if event not in looks or looks.index(event) % 2]
    assert checker.NO_WAIT not in {violation.law for violation in check(silent, RULES)}


def test_a_task_may_wait_while_every_slot_is_taken() -> None:
    random = Random(2)
    broken = mutations.task_is_forgotten(forge.forge(random), random)
    busy = [replace(event, slots=0) if isinstance(event, history.WorkerStarted) else event for event in broken]
    assert checker.NO_WAIT not in {violation.law for violation in check(busy, RULES)}


def test_a_task_may_wait_while_each_claim_takes_all_it_asked_for() -> None:
    random = Random(2)
    broken = mutations.busy_worker_forgets_a_task(forge.forge(random), random)
    full = [replace(event, wanted=1) if isinstance(event, history.Claimed) else event for event in broken]
    assert checker.NO_WAIT in {violation.law for violation in check(broken, RULES)}
    assert checker.NO_WAIT not in {violation.law for violation in check(full, RULES)}


def test_an_earlier_crash_still_told_of_a_task_that_was_given_back_is_no_breach() -> None:
    lease = Lease(1, 2)
    claim = history.Claimed(at=20, wall=0, worker="w", began=20, seconds=10, leases=(lease,))
    crashed = history.Row(1, "k", "pending", 1, 0, None, None, None, forge.CRASH, True)
    given_back = crashed._replace(attempt=2, released=1)
    events: list[history.Event] = [
        history.Seen(at=19, wall=0, row=crashed),
        claim,
        history.GivingBack(at=21, wall=0, worker="w", leases=(lease,)),
        history.Seen(at=22, wall=0, row=given_back),
    ]
    assert checker.ONE_LEASE not in {violation.law for violation in check(events, RULES)}


@pytest.mark.parametrize(("beat", "ended", "breach"), [(5, 12, True), (9.8, 12, False), (13, 12, True)])
def test_a_heartbeat_extends_a_lease_unless_the_janitor_may_have_locked_it(
    beat: float, ended: float, breach: bool
) -> None:
    lease = Lease(1, 1)
    row = history.Row(1, "k", "pending", 1, 0, None, None, None, forge.CRASH, False)
    events: list[history.Event] = [
        history.Claimed(at=0, wall=0, worker="w", began=0, seconds=10, leases=(lease,)),
        history.Extended(at=beat, wall=0, worker="w", began=beat, seconds=10, kept=(lease,), lost=()),
        history.Seen(at=ended, wall=0, row=row),
    ]
    found = {violation.law for violation in check(sorted(events, key=lambda event: event.at), RULES)}
    assert (checker.ONE_LEASE in found) == breach


def test_it_says_for_how_long_law_7_was_judged() -> None:
    started = history.WorkerStarted(at=0, wall=0, worker="w", pid=1, slots=1)
    looks: list[history.Event] = [history.Looked(at=at, wall=0, began=at, terminal=0) for at in range(21)]
    outage: list[history.Event] = [
        history.FaultBegan(at=10, wall=0, name="away", outage=True),
        history.FaultEnded(at=12, wall=0, name="away"),
    ]  # fmt: skip
    events = sorted([started, *looks, *outage], key=lambda event: event.at)
    assert seconds_judged(events, RULES) == (10 - 3) + (20 - 12 - 3 - 3)
    assert seconds_judged([started, *looks], RULES) == 20 - 3
    assert seconds_judged([], RULES) == 0


def test_a_history_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    events = forge.forge(Random(3))
    history.write(tmp_path / "one.jsonl", events)
    assert history.read(tmp_path) == events
