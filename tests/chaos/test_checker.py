"""The checker itself: it passes what is right, and catches each law's breach, in histories that nobody lived through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos import checker, forge, history, mutations
from tests.chaos.checker import Rules, check

RULES = Rules(polling_interval=1.0, bound=2.0, recovery=3.0)

BREACHES = [
    pytest.param(mutation, law, id=mutation.__name__)
    for law, mutations in {
        checker.ONE_STATE: mutations.LAW_1,
        checker.ONE_LEASE: mutations.LAW_2,
        checker.NO_LOSS: mutations.LAW_3,
        checker.NO_WAIT: mutations.LAW_7,
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


def test_a_history_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    events = forge.forge(Random(3))
    history.write(tmp_path / "one.jsonl", events)
    assert history.read(tmp_path) == events
