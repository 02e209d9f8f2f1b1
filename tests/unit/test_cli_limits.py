"""`continuum limits`, on a database in memory."""

from __future__ import annotations

import json

import pytest
import trio

from continuum.db.memory import MemoryDatabase
from continuum.model import Limit, Scope
from tests.unit.test_cli_tasks import database, run

__all__ = ["database"]


def limits(database: MemoryDatabase) -> list[Limit]:
    return trio.run(database.limits)


def test_what_is_not_given_stays_as_it_was(database: MemoryDatabase) -> None:
    run("limits", "set", "tenant:acme", "--weight", "3", "--rate", "100/1m")
    printed, _ = run("limits", "set", "tenant:acme", "--max-running", "5")
    assert printed == "tenant:acme  weight 3, at most 5 running, at most 100 starts in 60 s\n"
    assert limits(database) == [Limit(Scope.TENANT, "acme", weight=3, max_running=5, rate=100, rate_period=60)]
    run("limits", "set", "tenant:acme", "--clear", "--max-pending", "7")
    assert limits(database) == [Limit(Scope.TENANT, "acme", max_pending=7)]


def test_limits_are_listed_for_people_and_programs(database: MemoryDatabase) -> None:
    assert run("limits", "list")[0].startswith("nothing is limited; `continuum limits set ")
    run("limits", "set", "tenant:*", "--max-running", "2")
    run("limits", "pause", "queue")
    assert run("limits", "list")[0].splitlines() == ["queue  paused", "tenant:*  at most 2 running"]
    assert json.loads(run("limits", "list", "--json")[0].splitlines()[1])["max_running"] == 2


def test_a_pause_ends_and_a_limit_is_removed(database: MemoryDatabase) -> None:
    run("limits", "pause", "tenant:a:b")
    assert limits(database) == [Limit(Scope.TENANT, "a:b", paused=True)]
    run("limits", "resume", "tenant:a:b")
    assert limits(database) == [Limit(Scope.TENANT, "a:b", paused=False)]
    assert run("limits", "clear", "tenant:a:b") == ("", "")
    assert run("limits", "clear", "tenant:a:b")[1] == "continuum: tenant:a:b had no limit\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "acme", "--weight", "1"), "'acme' is neither queue nor tenant:NAME, key:NAME, tag:NAME or code:ID"),
        (("pause", "queue:x"), "'queue:x' is neither queue"),
        (("set", "tenant:acme"), "it limits nothing: give max_pending or max_running"),
        (("set", "tenant:acme", "--rate", "fast"), "'fast' is no rate"),
        (("set", "tenant:acme", "--weight", "0"), "weight 0 is out of range"),
        (("set", "tag:gpu", "--max-running", "3"), "max_running is no limit of a tag"),
        (("pause", "code:report.py"), "name 'report.py' is no id of a code; `continuum codes list` lists them"),
    ],
)
def test_what_cannot_be_is_wrong_usage(database: MemoryDatabase, arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(run("limits", *arguments, code=2)[1].replace("│", " ").split())
    assert limits(database) == []
