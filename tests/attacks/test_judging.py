"""The suite's own judgement: an attack that succeeded is never taken for one that was stopped."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from continuum.model import Status, TaskRecord
from tests.attacks.attack import HONEST_OUTPUT, Attack, Evidence, Result, Verdict, judged
from tests.attacks.prelude import PRELUDE
from tests.attacks.probe import PROBE, Host, NotASandbox, this_host
from tests.attacks.table import complaint

NOW = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def record(output: str = "", status: str = Status.COMPLETED, **values: object) -> TaskRecord:
    plain: dict[str, object] = dict.fromkeys(TaskRecord.__dataclass_fields__)
    known = {"id": 1, "name": "", "status": status, "output": output, "error_output": "", "created_at": NOW}
    return TaskRecord(**(plain | known | values))  # type: ignore[arg-type]


def evidence(attack: TaskRecord, **values: object) -> Evidence:
    given = Evidence(attack, None, None, record(HONEST_OUTPUT), 0.1, False, False)
    return replace(given, **values)  # type: ignore[arg-type]


ATTACK = Attack(name="one", wants="something", code="")


def test_a_script_that_says_nothing_is_unclear() -> None:
    assert judged(ATTACK, evidence(record("what?")))[0] is Verdict.UNCLEAR


def test_a_script_that_died_is_stopped_only_where_it_may() -> None:
    died = record(status=Status.FAILED, last_error="Killed by signal 9")
    assert judged(ATTACK, evidence(died))[0] is Verdict.UNCLEAR
    assert judged(replace(ATTACK, may_die=True), evidence(died)) == (Verdict.STOPPED, "Killed by signal 9")


def test_success_is_believed_before_failure() -> None:
    both = record("STOPPED: at first\nSUCCEEDED: then\n")
    assert judged(ATTACK, evidence(both)) == (Verdict.SUCCEEDED, "then")


def test_what_is_seen_from_outside_counts_whatever_the_script_says() -> None:
    watched = replace(ATTACK, judge=lambda evidence: "seen")
    assert judged(watched, evidence(record("STOPPED: honestly\n"))) == (Verdict.SUCCEEDED, "seen")


@pytest.mark.parametrize(
    "honest", [record("7 bf5b6382\n"), record(HONEST_OUTPUT, error_output="!"), record(status=Status.FAILED)]
)
def test_an_honest_task_that_suffers_is_a_success_of_the_attack(honest: TaskRecord) -> None:
    assert judged(ATTACK, evidence(record("STOPPED: no\n"), honest=honest))[0] is Verdict.SUCCEEDED


def test_the_next_task_has_the_word_where_there_is_one() -> None:
    two = replace(ATTACK, aftermath="look")
    found = evidence(record("STOPPED: no\n"), aftermath=record("SUCCEEDED: it is here\n"))
    assert judged(two, found) == (Verdict.SUCCEEDED, "it is here")


def test_a_control_that_does_not_work_is_a_complaint() -> None:
    stopped = Result("one", "control", Verdict.STOPPED, "why", 0.1)
    assert "proves nothing" in complaint(ATTACK, stopped)
    assert complaint(replace(ATTACK, needs="a machine"), stopped) == ""


def test_what_is_listed_as_open_and_is_not_is_a_complaint() -> None:
    listed = replace(ATTACK, open_on={"bubblewrap": "why"})
    assert "listed as open" in complaint(listed, Result("one", "bubblewrap", Verdict.STOPPED, "no", 0.1))
    assert complaint(listed, Result("one", "bubblewrap", Verdict.SUCCEEDED, "yes", 0.1)) == ""
    assert complaint(ATTACK, Result("one", "bubblewrap", Verdict.SUCCEEDED, "yes", 0.1))


@pytest.fixture
def host() -> Iterator[Host]:
    with this_host() as host:
        yield host


def test_this_machine_is_not_taken_for_a_sandbox(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """The probe is harmless anywhere; on the host itself every sign must say so."""
    exec(compile(PROBE, "probe", "exec"), {"payload": host.payload})
    with pytest.raises(NotASandbox) as refused:
        host.judge(capsys.readouterr().out)
    for sign in ("host name", "process 1", "host's file", "root directory", "pid namespace", "net namespace"):
        assert sign in str(refused.value)


def test_one_sign_is_enough_to_refuse(host: Host) -> None:
    fine = {
        "hostname": "sandbox", "processes": 3, "pid": 2, "first": ["python3", "-I", "-c"], "markers": [],
        "namespaces": dict.fromkeys(host.namespaces, 1), "root": [0, 0], "interfaces": ["lo"],
    }  # fmt: skip
    assert host.judge(json.dumps(fine)) == ("lo",)
    for name, bad in (
        ("hostname", "web-1"), ("processes", 400), ("first", ["/sbin/init"]), ("markers", ["/tmp/x"]),
        ("root", host.root), ("namespaces", fine["namespaces"] | {"net": host.namespaces["net"]}),  # type: ignore[operator]
    ):  # fmt: skip
        with pytest.raises(NotASandbox):
            host.judge(json.dumps(fine | {name: bad}))
    with pytest.raises(NotASandbox):
        host.judge("")


def test_every_attacking_script_refuses_to_run_outside_of_a_sandbox() -> None:
    with pytest.raises(SystemExit, match="not a sandbox"):
        exec(compile(PRELUDE, "prelude", "exec"), {"payload": "{}"})
