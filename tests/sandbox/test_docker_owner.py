"""Whose a container is, and when that worker counts as dead."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continuum.config import Settings
from continuum.sandbox.docker_owner import UNREGISTERED, Owner, Process

OLD = UNREGISTERED + 1
NOBODY: frozenset[str] = frozenset()


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]


@pytest.fixture
def me() -> Owner:
    return Owner.current(settings(), "me")


def in_process(owner: Owner, pid: int, started: str) -> Owner:
    return replace(owner, worker="other", process=replace(owner.process, pid=str(pid), started=started))


def elsewhere(owner: Owner) -> Owner:
    return replace(owner, worker="other", process=replace(owner.process, namespace="1"))


def test_labels_carry_an_owner_whole(me: Owner) -> None:
    assert Owner.from_labels(me.labels("sandbox")) == me


def test_a_workers_own_containers_are_never_left_over(me: Owner) -> None:
    assert not me.is_dead(me, NOBODY, OLD)


def test_a_container_without_a_worker_is_nobodys_to_remove(me: Owner) -> None:
    assert not Owner.from_labels({"continuum.worker": ""}).is_dead(me, NOBODY, OLD)


def test_a_running_process_is_alive_whatever_the_database_says(me: Owner) -> None:
    assert not replace(me, worker="other").is_dead(me, NOBODY, OLD)


def test_a_process_that_ended_is_dead_at_once_whatever_the_database_says(me: Owner) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert in_process(me, child.pid, "1").is_dead(me, {"other"}, age=0)


def test_a_process_id_that_another_process_has_now_is_dead(me: Owner) -> None:
    assert in_process(me, os.getpid(), "1").is_dead(me, {"other"}, age=0)


def test_a_killed_process_that_its_parent_has_not_collected_is_dead(me: Owner) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    try:
        started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        assert not in_process(me, child.pid, started).is_dead(me, NOBODY, age=0)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert in_process(me, child.pid, started).is_dead(me, {"other"}, age=0)
    finally:
        child.stdin.close()
        child.kill()
        child.wait()


def test_a_worker_of_another_namespace_is_judged_by_the_database(me: Owner) -> None:
    assert elsewhere(me).is_dead(me, NOBODY, OLD)
    assert not elsewhere(me).is_dead(me, {"other"}, OLD)


def test_another_boot_is_another_namespace(me: Owner) -> None:
    before = replace(me, worker="other", process=replace(me.process, boot="before"))
    assert before.is_dead(me, NOBODY, OLD)
    assert not before.is_dead(me, {"other"}, OLD)


def test_a_worker_of_another_namespace_has_time_to_register(me: Owner) -> None:
    assert not elsewhere(me).is_dead(me, NOBODY, UNREGISTERED - 1)


def test_workers_of_another_database_are_left_alone(me: Owner) -> None:
    assert not replace(elsewhere(me), database="theirs").is_dead(me, NOBODY, OLD)


def test_the_same_database_has_the_same_name_and_shows_no_secret() -> None:
    def name(**values: Any) -> str:
        return Owner.current(settings(**values), "any").database

    assert name(db_host="a,b") == name(db_host=("a", "b"), db_password="other")
    assert name(db_host="a") != name(db_host="b")
    assert name(db_name="a") != name(db_name="b")
    assert name(database_url="postgres://u:one@h/d") == name(database_url="postgres://u:two@h/d")
    assert name(database_url="postgres://u@h/d") != name(database_url="postgres://u@h/e")
    assert name(db_dialect="embedded", embedded_dir="a") != name(db_dialect="embedded", embedded_dir="b")


def test_labels_with_nonsense_are_those_of_a_dead_process(me: Owner) -> None:
    labels = {**me.labels("sandbox"), "continuum.worker": "other", "continuum.pid": "../1"}
    assert Owner.from_labels(labels).is_dead(me, {"other"}, age=0)


def test_a_process_knows_itself() -> None:
    assert Process.current() == Process.current()
    assert Process.current().is_alive()
