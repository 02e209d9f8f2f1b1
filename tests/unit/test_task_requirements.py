"""What a worker makes of tasks that require something, on the virtual clock."""

from __future__ import annotations

import pytest
import trio.testing

from continuum.db.memory import MemoryDatabase
from continuum.model import Status
from continuum.requirements import BadRequirements, parse_requirements
from continuum.sandbox.bubblewrap import BubblewrapBackend
from continuum.sandbox.protocol import RequirementsFailed
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import settings, worker


async def test_a_task_runs_in_a_sandbox_that_has_what_it_requires(autojump_clock: trio.testing.MockClock) -> None:
    async with worker(MemoryDatabase()) as running:
        ids = [
            *await running.submit("hello", requirements="a==1"),
            *await running.submit("hello", requirements="b==1"),
            *await running.submit("hello", requirements="# nothing\n"),
            *await running.submit("hello"),
        ]
        # The fake sandbox refuses a script that asks for another layer than it has.
        assert [record.status for record in await running.wait_for(*ids)] == [Status.COMPLETED] * 4


async def test_a_list_that_can_never_be_installed_fails_its_task_without_another_try(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend(uninstallable=BadRequirements("No solution found when resolving dependencies"))
    async with worker(MemoryDatabase(), backend) as running:
        (record,) = await running.wait_for(*await running.submit("hello", requirements="a==1"))
        assert (record.status, record.attempt) == (Status.FAILED, 1)
        assert record.last_error == "Invalid requirements: No solution found when resolving dependencies"


async def test_a_list_that_could_not_be_installed_this_time_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend(uninstallable=RequirementsFailed("the index is down"))
    async with worker(MemoryDatabase(), backend) as running:
        (task,) = await running.submit("hello", requirements="a==1")
        await running.wait_for(task, status=Status.PENDING)
        while (record := await running.record(task)).last_error is None:
            await trio.sleep(0.01)
        assert record.last_error == "Requirements not installed: the index is down"
        backend.uninstallable = None
        (record,) = await running.wait_for(task)
        assert (record.status, record.attempt) == (Status.COMPLETED, 2)


async def test_a_layer_that_is_removed_at_the_wrong_moment_costs_no_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with worker(MemoryDatabase(), FakeBackend(gone_layers=2)) as running:
        (record,) = await running.wait_for(*await running.submit("hello", requirements="a==1"))
        assert (record.status, record.attempt) == (Status.COMPLETED, 1)


def test_bubblewrap_says_that_it_installs_nothing() -> None:
    backend = BubblewrapBackend(settings(), "worker")
    with pytest.raises(RequirementsFailed, match="SANDBOX=docker"):
        backend.layer(parse_requirements("a==1"))
