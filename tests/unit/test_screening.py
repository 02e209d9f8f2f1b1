"""CODE_POLICY: what the analysis finds, what it does not, and that no script can harm who analyses it."""

from __future__ import annotations

import datetime as dt
import importlib.util
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from continuum.config import ConfigurationError
from continuum.db.memory import MemoryDatabase
from continuum.model import ClaimedTask, Ending, Outcome, Status
from continuum.nursery import screening
from continuum.nursery.completion import decide
from continuum.nursery.screening import (
    LARGEST_SCRIPT,
    ScreenerKilled,
    Screening,
    ScreeningUnusable,
    Verdict,
    open_screening,
)
from tests.conftest import require
from tests.support.harness import settings, worker

SHELL = "import subprocess\nsubprocess.run(payload, shell=True)\n"
"""What the rules of severity high find."""
NEWEST = "x = t'{1}'\n"
"""Of Python 3.14."""
HIDDEN = "import subprocess\nrun = vars(subprocess)['run']\nrun(payload, **{'shell': True})\n"
"""The same, for somebody who knows that there are rules."""


def _parses(code: str) -> bool:
    try:
        compile(code, "script.py", "exec")
    except SyntaxError:
        return False
    return True


@pytest.fixture(autouse=True)
def _bandit() -> None:
    require("bandit", importlib.util.find_spec("bandit") is not None, "the extra `screening` is not installed")


def task_of(code: str, task_id: int = 1) -> ClaimedTask:
    return ClaimedTask(
        id=task_id, attempt=1, max_attempts=3, released=0, name="", code=code, code_id="a-code", payload="null",
        priority=0, timeout=None, tenant=None, traceparent=None, created_at=dt.datetime.now(dt.UTC),
    )  # fmt: skip


def screen(policy: str = "reject", **values: Any) -> Screening:
    return Screening(settings(code_policy=policy, **values))


async def refusal_of(code: str, **values: Any) -> str:
    """Why a script is refused; empty when it may run."""
    outcome = await screen(**values).refuse(task_of(code))
    assert outcome is None or (outcome.ending is Ending.MALICIOUS and outcome.message)
    return outcome.message if outcome else ""


async def test_a_finding_refuses_the_code_and_says_line_rule_and_severity() -> None:
    message = await refusal_of(SHELL)
    assert message.startswith("Refused by CODE_POLICY=reject: line 2: subprocess call with shell=True identified")
    assert message.endswith("(B602, high)")


async def test_the_screening_is_a_seat_belt_which_who_knows_of_it_slips_out_of() -> None:
    assert "B602" in await refusal_of(SHELL)
    assert await refusal_of(HIDDEN) == ""


@pytest.mark.skipif(_parses(NEWEST), reason="this Python knows the syntax")
async def test_code_in_a_newer_syntax_than_the_workers_is_taken_for_a_syntax_error_and_passes() -> None:
    assert await refusal_of(NEWEST + SHELL) == ""


async def test_a_script_has_no_say_in_it() -> None:
    assert "B602" in await refusal_of(SHELL.replace("True)", "True)  # nosec"))
    assert "B602" in await refusal_of(SHELL.replace("True)", "True)  # nosec B602"))
    assert "B602" in await refusal_of("# coding: latin-1\n" + SHELL)


async def test_only_what_is_severe_and_certain_enough_counts() -> None:
    weak = "eval(payload)\n"
    assert await refusal_of(weak) == ""
    assert "B307, medium" in await refusal_of(weak, code_policy_severity="medium")
    unsure = "query = \"DELETE FROM t WHERE name = '%s'\" % payload\n"
    assert "B608" in await refusal_of(unsure, code_policy_severity="medium")
    assert await refusal_of(unsure, code_policy_severity="medium", code_policy_confidence="high") == ""


async def test_a_configuration_chooses_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "bandit.yaml"
    file.write_text("skips: [B602]\n")
    assert await refusal_of(SHELL, code_policy_config=file) == ""
    file.write_text("tests: [B102]\n")
    assert "B102" in await refusal_of("exec(payload)", code_policy_config=file, code_policy_severity="medium")


async def test_no_more_findings_are_told_than_fit_and_the_rest_is_counted() -> None:
    message = await refusal_of("import subprocess\n" + "subprocess.run(payload, shell=True)\n" * 500)
    assert message.count("B602") == screening.FINDINGS
    assert message.endswith(f"and {500 - screening.FINDINGS} more")


async def test_what_a_finding_quotes_can_be_written_to_a_database() -> None:
    message = await refusal_of("password = 'a\\x00b\\ud800\\n\\x1b[31mred'\n", code_policy_severity="low")
    assert "B105" in message
    assert message.isprintable()
    message.encode()


# -- what cannot be analysed ----------------------------------------------------------------------------------------------


async def test_a_syntax_error_is_the_scripts_own_failure() -> None:
    assert await refusal_of("def (:\n") == ""
    assert await refusal_of("(" * 300) == ""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = " + "-" * 100_000 + "1", "nested too deeply"),
        ("x" + ".a" * 100_000, "nested too deeply"),
        ("x = " + " + ".join("1" * 100_000), "nested too deeply"),
        ("#" * (LARGEST_SCRIPT + 1), f"has {LARGEST_SCRIPT + 1} bytes; at most {LARGEST_SCRIPT}"),
    ],
)
async def test_code_that_cannot_be_analysed_is_refused_where_code_may_be(code: str, reason: str) -> None:
    message = await refusal_of(code)
    assert message.startswith("Refused by CODE_POLICY=reject: the code cannot be analysed: ")
    assert reason in message
    with structlog.testing.capture_logs() as logs:
        assert await screen("warn").refuse(task_of(code)) is None
    assert reason in logs[0]["failure"]


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Another screener, to which a script has done something."""
    file = folder / "screener.py"
    file.write_text(f"import os, resource, signal, sys, time\nsys.stdin.buffer.read()\n{program}\n")
    monkeypatch.setattr(screening, "SCREENER", file)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11 and no answer"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "of CPU time"),
        ("sys.exit(1)", "ended with 1 and no answer"),
        ("print('nonsense')", "no answer"),
        ("print('[]')", "no answer"),
        ('print(\'{"findings": [[1]], "count": 1}\')', "no answer"),
        ("print('{\"findings\": 7}')", "no answer"),
        ('print(\'{"findings": [], "count": "many"}\')', "no answer"),
        ("print('x' * 10_000_000)", "no answer"),
        ("print('[' * 100_000)", "no answer"),
        ('print(\'{"findings": [["a", "b", Infinity, "c"]], "count": 1}\')', "no answer"),
        ('print(\'{"findings": [], "count": Infinity}\')', "no answer"),
    ],
)
async def test_whatever_a_script_does_to_its_screener_ends_in_a_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, reason: str
) -> None:
    stand_in(monkeypatch, tmp_path, program)
    assert reason in await refusal_of("pass")


async def test_a_script_that_keeps_the_analysis_busy_is_refused_when_its_cpu_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screening, "CPU_SECONDS", 1)
    with trio.fail_after(30):
        assert "takes more than 1 s of CPU time" in await refusal_of("x = f(a, b)[0].c\n" * 50_000)


async def test_a_script_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "MEMORY", 128 * 1024 * 1024)
    assert "128 MiB of memory" in await refusal_of("x = [" + "1," * 400_000 + "]\n")


@pytest.mark.parametrize(
    "program", ["os.kill(os.getpid(), signal.SIGTERM)", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(60)"]
)
async def test_an_analysis_that_was_ended_from_outside_says_nothing_of_the_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    monkeypatch.setattr(screening, "DEADLINE", 1.0)
    stand_in(monkeypatch, tmp_path, program)
    one = screen()
    with pytest.raises(ScreeningUnusable, match="could not be screened"):
        await one.refuse(task_of("pass"))
    monkeypatch.undo()
    assert await one.refuse(task_of("pass")) is None, "and nothing of it is remembered"


async def test_code_whose_analysis_is_killed_goes_back_once_and_is_never_called_malicious(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    one, warning = screen(), screen("warn")
    for _ in range(2):
        with pytest.raises(ScreeningUnusable, match="was killed"):
            await one.refuse(task_of("pass"))
        outcome = await one.refuse(task_of("pass"))
        assert outcome is not None
        assert outcome.ending is Ending.INVALID
        assert outcome.message.endswith("killed (SIGKILL), as by a host that is short of memory, twice in a row")
    with pytest.raises(ScreeningUnusable):
        await warning.refuse(task_of("pass"))
    assert await warning.refuse(task_of("pass")) is None, "where nothing is refused"
    monkeypatch.undo()
    assert await one.refuse(task_of("pass")) is None, "and nothing of it is remembered"


async def test_while_code_cannot_be_screened_nothing_is_claimed_until_an_analysis_works_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, tries = True, 0

    async def analyse(self: Screening, code: bytes) -> Verdict:
        nonlocal tries
        tries += 1
        await trio.sleep(0)
        if broken:
            raise ScreeningUnusable("no process can be started")
        return Verdict()

    monkeypatch.setattr(Screening, "analyse", analyse)
    async with worker(MemoryDatabase(), screening=screen()) as w:
        (task_id,) = await w.submit("hello")
        await trio.sleep(600)
        assert (await w.record(task_id)).status == "pending"
        assert "no process can be started" in w.state.health.problems["screening"]
        assert "sandbox" not in w.state.health.problems
        assert w.state.claimed == 1, "and it did not go round meanwhile"
        assert 60 <= tries < 150, "every 5 to 10 s"
        broken = False
        (record,) = await w.wait_for(task_id, seconds=15)
        assert record.status == Status.COMPLETED
        assert w.state.health.ready


async def test_an_analysis_that_is_killed_again_and_again_comes_back_to_life(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def analyse(self: Screening, code: bytes) -> Verdict:
        await trio.sleep(0)
        if code == b"pass\n":
            return Verdict()
        raise ScreenerKilled("the analysis was killed")

    monkeypatch.setattr(Screening, "analyse", analyse)
    async with worker(MemoryDatabase(), screening=screen()) as w:
        (record,) = await w.wait_for(*await w.submit("hello"), seconds=60)
        assert record.status == Status.FAILED
        assert "killed, twice in a row" in (record.last_error or "")
        assert w.state.claimed == 2


async def test_a_screener_sees_nothing_of_the_worker_and_may_write_no_large_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "canary")
    seen = tmp_path / "seen"
    stand_in(
        monkeypatch,
        tmp_path,
        "seen = repr((dict(os.environ), os.getcwd(), os.listdir('/proc/self/fd')))\n"
        f"open({str(seen)!r}, 'w').write(seen)",
    )
    await refusal_of("pass")
    environment, folder, descriptors = eval(seen.read_text())
    assert set(environment) <= {"LC_CTYPE"}, "which Python sets by itself"
    assert (folder, len(descriptors)) == ("/", 4), "its three and the one that lists them"


# -- how often ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def analyses(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The scripts that were analysed, in order, without a process for any of them."""
    seen: list[bytes] = []

    async def analyse(self: Screening, code: bytes) -> Verdict:
        seen.append(code)
        await trio.sleep(0)
        return Verdict(failure="it is new") if b"bad" in code else Verdict()

    monkeypatch.setattr(Screening, "analyse", analyse)
    return seen


async def test_equal_code_is_analysed_once_however_many_tasks_bring_it_at_once(analyses: list[bytes]) -> None:
    one = screen("warn")
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one.refuse, task_of("bad" if number % 2 else "good", number))
        await one.refuse(task_of("bad"))
    assert sorted(analyses) == [b"bad", b"good"]
    assert len(logs) == 1


async def test_who_asked_first_and_gave_up_leaves_it_to_the_next(analyses: list[bytes]) -> None:
    one = screen()
    with trio.move_on_after(0) as scope:
        await one.refuse(task_of("bad"))
    assert scope.cancelled_caught
    assert await one.refuse(task_of("bad")) is not None


async def test_the_oldest_verdicts_are_forgotten(monkeypatch: pytest.MonkeyPatch, analyses: list[bytes]) -> None:
    monkeypatch.setattr(screening, "REMEMBERED", 2)
    one = screen()
    for code in ("a", "b", "a", "c", "a", "b"):
        await one.refuse(task_of(code))
    assert analyses == [b"a", b"b", b"c", b"b"]


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quotes", "shown"), [(False, "line 1: B105, low"), (True, "Possible hardcoded password")])
async def test_a_warning_quotes_code_only_where_payloads_may_be_logged(quotes: bool, shown: str) -> None:
    one = screen("warn", code_policy_severity="low", log_payloads=quotes)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert await one.refuse(task_of("password = 'canary'")) is None
    (line,) = logs
    assert (line["log_level"], line["code_id"], line["count"]) == ("warning", "a-code", 1)
    assert shown in line["findings"][0]
    assert ("canary" in str(line)) is quotes


def test_a_refused_attempt_is_never_tried_again() -> None:
    task = task_of(SHELL)
    assert task.counted_attempt < task.max_attempts
    completion = decide(task, Outcome(Ending.MALICIOUS, message="Refused"))
    assert (completion.status, completion.last_error, completion.retry_in) == (Status.MALICIOUS, "Refused", None)


# -- the start ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_needed_while_it_is_off() -> None:
    assert await open_screening(settings()) is None


async def test_a_start_without_bandit_ends_with_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(ConfigurationError) as caught:
        await open_screening(settings(code_policy="reject"))
    assert str(caught.value).startswith("CODE_POLICY=reject needs bandit, which is not installed: pip install")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda file: None,
        lambda file: file.write_text("tests: [B999]\n"),
        lambda file: file.write_text("- no\n- mapping\n"),
        lambda file: file.write_text("{"),
        lambda file: file.write_text(""),
    ],
    ids=["missing", "unknown rule", "no mapping", "no yaml", "empty"],
)
async def test_a_start_with_a_configuration_that_cannot_be_used_says_so(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    file = tmp_path / "bandit.yaml"
    make(file)
    with pytest.raises(ConfigurationError) as caught:
        await open_screening(settings(code_policy="warn", code_policy_config=file))
    assert str(caught.value).startswith(f"CODE_POLICY_CONFIG={file}: bandit cannot use it: ")
    assert len(str(caught.value).splitlines()) == 1
