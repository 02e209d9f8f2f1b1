"""Listing, showing, cancelling and retrying tasks, and stored code, on a database in memory."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import typer
from typer.testing import CliRunner

from continuum.cli import app, formats
from continuum.cli.common import since_when, until_when
from continuum.cli.complete import complete_code, complete_status, complete_task
from continuum.db.memory import EPOCH, MemoryDatabase
from continuum.model import Completion, Limit, NewTask, Scope, Status

SCRIPT = "def half(n):\n    return n / 0\n\n\nprint('begun')\nhalf(4)\n"
TRACEBACK = """Traceback (most recent call last):
  File "/sandbox/task/script.py", line 6, in <module>
    half(4)
  File "/sandbox/task/script.py", line 2, in half
    return n / 0
ZeroDivisionError: division by zero
"""
FAILURE = Completion(1, 1, Status.FAILED, 1, "begun\n", TRACEBACK, "ZeroDivisionError: division by zero\nexit code 1")


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> MemoryDatabase:
    """What every command opens."""
    memory = MemoryDatabase()

    @asynccontextmanager
    async def open_memory(*_: object, **__: object) -> AsyncIterator[MemoryDatabase]:
        yield memory

    monkeypatch.setattr("continuum.db.open_database", open_memory)
    monkeypatch.setattr("continuum.client.trio_client.open_database", open_memory)
    return memory


@pytest.fixture
def failed(database: MemoryDatabase) -> MemoryDatabase:
    """The same with a task that failed, one that completed, and one that waits."""

    async def prepare() -> None:
        await database.submit([NewTask(name="halves", code=SCRIPT, max_attempts=1, tenant="acme", payload='{"n": 4}')])
        await database.submit([NewTask(name="other\x1b[2J", code="print(1)"), NewTask(name="third", code="print(1)")])
        await database.claim("host-1", 2, lease=30)
        await database.complete("host-1", [FAILURE])
        await database.complete("host-1", [Completion(2, 1, Status.COMPLETED, 0, "1\n", "", None)])

    trio.run(prepare)
    return database


def run(*arguments: str, code: int = 0, stdin: str = "") -> tuple[str, str]:
    result = CliRunner().invoke(app, arguments, input=stdin, prog_name="continuum")
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout, result.stderr


def test_tasks_are_listed_newest_first_and_page_by_page(failed: MemoryDatabase) -> None:
    printed, hint = run("tasks", "--limit", "2")
    first, second = printed.splitlines()[1:]
    assert first.split()[:3] == ["3", "pending", "0/3"]
    assert (second.split()[:3], second.split()[-1]) == (["2", "completed", "1/3"], "other\\x1b[2J")
    assert hint == "continuum: older ones: the same with --before 2\n"
    (line,) = run("tasks", "--before", "2")[0].splitlines()[1:]
    assert re.fullmatch(r" *1 +failed +1/1 +\S+ \S+ +[\d.]+ s +halves +ZeroDivisionError: division by zero", line)


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--status", "failed"], [1]),
        (["--status", "failed,Pending"], [3, 1]),
        (["-s", "failed", "-s", "completed"], [2, 1]),
        (["--tenant", "acme"], [1]),
        (["--name", "HALV"], [1]),
        (["2"], [2]),
        (["--worker", "host-1"], [2, 1]),
        (["--error", "ZeroDivisionError: division by zero"], [1]),
        (["--since", "2000-01-01"], [3, 2, 1]),
        (["--since", "2999-01-01T08:00+02:00"], []),
    ],
)
def test_tasks_are_found_by_what_is_known_of_them(failed: MemoryDatabase, arguments: list[str], ids: list[int]) -> None:
    lines = [json.loads(line) for line in run("tasks", "--json", *arguments)[0].splitlines()]
    assert [line["id"] for line in lines] == ids
    assert all(line["id_str"] == str(line["id"]) for line in lines)


def test_where_no_task_is_it_says_what_to_do(database: MemoryDatabase) -> None:
    assert run("tasks") == ("", "continuum: there is no task yet: `continuum submit FILE.py` submits one\n")
    assert run("tasks", "--status", "failed") == ("", "continuum: no task fits\n")
    assert run("codes", "list") == ("", "continuum: there is no code yet: `continuum codes add FILE.py` stores some\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--status", "faild"],
            "'faild' is no status; use pending, processing, completed, failed, cancelled, malicious",
        ),
        (["--since", "soon"], "'soon': use 90s, 5m, 1h30m or 7d, or a date such as 2026-11-29"),
        (["x", "--name", "y"], "give the text or --name, not both"),
        (["--limit", "0"], "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_looked_for_is_wrong_usage(arguments: list[str], said: str) -> None:
    assert said in run("tasks", *arguments, code=2)[1]


def test_since_takes_lengths_of_time_and_dates() -> None:
    now = dt.datetime.now(dt.UTC)
    for text, seconds in (("90", 90), ("1h30m", 5400), ("7d", 7 * 86400)):
        assert abs((now - since_when(text)).total_seconds() - seconds) < 5
    assert since_when("2026-11-29") == dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
    assert since_when("2026-11-29T08:00+02:00") == dt.datetime(2026, 11, 29, 6, tzinfo=dt.UTC)
    with pytest.raises(typer.BadParameter):
        since_when("yesterday")
    assert abs((until_when("2d") - now).total_seconds() - 2 * 86400) < 5


def test_a_task_shows_its_story_with_the_place_in_its_code(failed: MemoryDatabase) -> None:
    printed, hint = run("show", "1")
    assert printed.startswith("task 1  halves  failed\n")
    for line in (
        "  may have        1 attempt",
        "  tenant          acme",
        '  payload         {"n": 4}',
        "error\n  ZeroDivisionError: division by zero\n  exit code 1\n",
        "code, line 2\n     1  def half(n):\n>    2      return n / 0\n     3  \n     4  \n",
        "stdout\n  begun\n",
        "stderr\n  Traceback (most recent call last):\n",
    ):
        assert line in printed, printed
    assert re.search(
        r"^ *1  failed +\S+ \S+ +[\d.]+ s +host-1 +1 +ZeroDivisionError: division by zero$", printed, re.MULTILINE
    )
    assert hint == "continuum: `continuum retry 1` tries it again, `continuum logs 1` prints all that it wrote\n"


def test_a_story_says_what_comes_next(failed: MemoryDatabase) -> None:
    assert run("show", "3")[1] == "continuum: `continuum logs -f 3` follows it, `continuum cancel 3` stops it\n"
    assert run("show", "2")[1] == ""
    shown = json.loads(run("show", "1", "--json")[0])
    assert [(each["attempt"], each["ending"], each["exit_code"]) for each in shown["history"]] == [(1, "failed", 1)]
    assert (
        run("show", "99", code=5)[1]
        == "continuum: there is no task 99\ncontinuum: `continuum tasks` lists the newest\n"
    )


def test_several_are_tried_again_and_cancelled_at_once(failed: MemoryDatabase) -> None:
    assert run("retry", "1", "3", "99", "1", code=5) == (
        "task 1: tried again as task 4\ntask 3: has not ended yet; `continuum cancel` ends it\n",
        "continuum: there is no task 99\ncontinuum: `continuum tasks` lists the newest\n",
    )
    assert run("retry", "1")[0] == "task 1: had been tried again before, as task 4\n"
    (line,) = run("retry", "1", "--json")[0].splitlines()
    assert json.loads(line) == {"id": 1, "result": "already", "task_id": 4}
    assert run("cancel", "3", "4", "2")[0] == (
        "task 3: cancelled before it ran\ntask 4: cancelled before it ran\n"
        "task 2: had already ended; nothing was changed\n"
    )
    assert "  a copy of       task 1\n" in run("show", "4")[0]
    assert "  tried again     as task 4\n" in run("show", "1")[0]


def test_code_is_stored_once_listed_shown_and_submitted(database: MemoryDatabase, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("# /// script\n# dependencies = ['six==1.16.0']\n# ///\nimport six\n")
    code_id = run("codes", "add", str(script))[0].strip()
    assert run("codes", "add", "-", stdin=script.read_text())[0].strip() == code_id
    assert run("codes", "show", code_id) == (script.read_text(), "continuum: it requires six==1.16.0\n")
    headings, line = run("codes", "list")[0].splitlines()
    assert headings.split() == ["id", "lines", "requires", "first", "line"]
    assert line.split() == [code_id, "4", "six==1.16.0", "#", "///", "script"]
    assert run("codes", "list", "--limit", "1")[1] == f"continuum: more: the same with --after {code_id}\n"
    assert run("codes", "list", "--after", code_id)[1] == "continuum: there is no code after that one\n"
    assert json.loads(run("codes", "list", "--json")[0])["id"] == code_id
    assert run("submit", "--code", code_id)[0] == "1\n"
    assert database.tasks[1].code_id == code_id
    trio.run(database.set_limit, Limit(Scope.QUEUE, "", max_pending=1))
    assert run("submit", "--code", code_id, code=7)[1] == (
        "continuum: 1 tasks are pending and LIMITS allows 1: no room for 1 more; try again in 1 s\n"
    )
    for missing in ("nothing", "11111111-1111-1111-1111-111111111111"):
        assert run("codes", "show", missing, code=5)[1] == (
            f"continuum: there is no code {missing}\ncontinuum: `continuum codes list` lists what there is\n"
        )
    for arguments in (["submit"], ["submit", str(script), "--code", code_id]):
        assert "give a script, FILE.py, or --code ID" in run(*arguments, code=2)[1]


class Context:
    """What typer hands to a completion."""

    def __init__(self, name: str) -> None:
        self.command = type("Command", (), {"name": name})


def test_a_shell_is_offered_what_fits(failed: MemoryDatabase) -> None:
    def offered(command: str, begun: str = "") -> list[str]:
        return [value for value, _ in complete_task(Context(command), begun)]  # type: ignore[arg-type]

    assert offered("show") == ["3", "2", "1"]
    assert (offered("cancel"), offered("retry"), offered("logs", "2")) == (["3"], ["1"], ["2"])
    assert len(complete_code("")) == 2
    assert complete_status("c") == ["completed", "cancelled"]
    assert complete_status("failed,m") == ["failed,malicious"]
    failed.unavailable = True
    assert offered("show") == []


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.123, "0.12 s"), (59.4, "59 s"), (60, "1 min"), (7300, "2 h"), (200000, "2 d"), (-1, "0.00 s")],
)
def test_a_length_of_time_has_its_largest_unit(seconds: float, written: str) -> None:
    assert formats.span(seconds) == written


def test_all_that_failed_alike_is_tried_again_by_one_command(failed: MemoryDatabase) -> None:
    where = (
        "--all",
        "--where",
        "tenant=acme",
        "--where",
        "error=ZeroDivisionError: division by zero",
        "--where",
        "since=2026-01-01",
    )
    printed, _ = run("retry", *where, "--dry-run")
    row, said = printed.splitlines()[1:]
    assert row.split()[:3] == ["1", "failed", "1/1"]
    assert said == "1 task would be tried again"
    assert json.loads(run("retry", *where, "--dry-run", "--json")[0])["newest"][0]["name"] == "halves"
    assert run("retry", *where)[0].splitlines()[-1] == "1 of 1 task submitted again"
    assert run("retry", *where)[0] == "0 of 0 tasks submitted again\n"
    assert failed.tasks[4].retry_of == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give ids, or --all"),
        (["1", "--all"], "give ids, or --all"),
        (["1", "--dry-run"], "--where and --dry-run go with --all"),
        (
            ["--all", "--where", "colour=red"],
            "'colour=red': use FIELD=VALUE, each of tenant, name, error, code, since once",
        ),
        (["--all", "--where", "tenant"], "'tenant': use FIELD=VALUE"),
        (["--all", "--where", "name=a", "--where", "name=b"], "'name=b': use FIELD=VALUE"),
        (["--all", "--where", "code=7"], "'7' is no code's id"),
        (["--all", "--where", "since=soon"], "'soon': use 90s"),
    ],
)
def test_what_cannot_be_tried_again_is_wrong_usage(arguments: list[str], said: str) -> None:
    assert said in run("retry", *arguments, code=2)[1]


def test_finished_tasks_are_archived_by_hand_and_deleted_when_asked(failed: MemoryDatabase, tmp_path: Path) -> None:
    for number in (1, 2):
        failed.tasks[number] = replace(failed.tasks[number], finished=EPOCH)
    printed, _ = run("archive", str(tmp_path), "--status", "failed", "--tenant", "acme", "--name", "HALV")
    assert printed.splitlines()[0] == "1 tasks written"
    path = Path(printed.splitlines()[1])
    assert json.loads(gzip.decompress(path.read_bytes()))["name"] == "halves"
    assert sorted(failed.tasks) == [1, 2, 3]
    answer = json.loads(run("archive", str(tmp_path), "--tenant", "nobody", "--json")[0])
    assert answer == {"written": 0, "deleted": 0, "files": []}
    answer = json.loads(run("archive", str(tmp_path), "--delete", "--json")[0])
    assert (answer["written"], answer["deleted"], len(answer["files"])) == (2, 2, 1)
    assert sorted(failed.tasks) == [3], "what has not ended stays"


def test_an_archive_needs_a_directory_and_ways_to_end(
    database: MemoryDatabase, failed: MemoryDatabase, tmp_path: Path
) -> None:
    failed.tasks[1] = replace(failed.tasks[1], finished=EPOCH)
    assert "ARCHIVE_DIR is not set, and no directory was given" in run("archive", code=2)[1]
    assert "'pending' is no way to end" in run("archive", str(tmp_path), "--status", "pending", code=2)[1]
    assert "takes no archive" in run("archive", str(tmp_path / "nowhere"), "--delete", code=2)[1]
    assert sorted(failed.tasks) == [1, 2, 3]


@pytest.fixture
def batches(database: MemoryDatabase) -> MemoryDatabase:
    """The batch `good` has completed, `bad` has failed in part, and `open` has not ended; so has one of another tenant."""

    async def prepare() -> None:
        names = ("good", "good", "bad", "bad", "open")
        await database.submit([NewTask(name=name, code="x", batch=name) for name in names])
        for task in await database.claim("host-1", 4, lease=30):
            status = Status.FAILED if task.id == 4 else Status.COMPLETED
            await database.complete("host-1", [Completion(task.id, 1, status, 0, "", "", None)])
        await database.submit([NewTask(code="x", batch="good", tenant="acme")])

    trio.run(prepare)
    return database


def test_a_batch_is_told_by_the_states_of_its_tasks(batches: MemoryDatabase) -> None:
    assert run("batch", "good") == ("good: 2 tasks, 2 completed\n", "")
    assert run("batch", "bad") == ("bad: 2 tasks, 1 completed, 1 failed\n", "")
    told = json.loads(run("batch", "good", "--tenant", "acme", "--json")[0])
    assert (told["name"], told["total"], told["pending"], told["ended"]) == ("good", 1, 1, False)
    assert "there is no task of the batch 'none'" in run("batch", "none", code=5)[1]
    assert (
        "there is no task of the batch 'bad' of the tenant 'acme'" in run("batch", "bad", "--tenant", "acme", code=5)[1]
    )


def test_a_batch_is_waited_for_and_the_exit_code_says_how_it_ended(batches: MemoryDatabase) -> None:
    assert run("batch", "good", "--wait")[0] == "good: 2 tasks, 2 completed\n"
    assert run("batch", "bad", "--wait", code=1)[0] == "bad: 2 tasks, 1 completed, 1 failed\n"
    said = run("batch", "open", "--wait", "--timeout", "0.01", code=6)[1]
    assert "1 of 1 tasks of the batch open had not ended in 0.01 s" in said
    assert "--timeout says how long to --wait" in run("batch", "open", "--timeout", "5", code=2)[1]


def test_the_tasks_of_a_batch_are_listed(batches: MemoryDatabase) -> None:
    found = [json.loads(line)["id"] for line in run("tasks", "--batch", "bad", "--json")[0].splitlines()]
    assert found == [4, 3]
    assert "batch" in run("show", "4")[0]


def test_a_task_is_submitted_into_a_batch_and_after_one(database: MemoryDatabase, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print(1)")
    run("submit", str(script), "--batch", "a")
    run("submit", str(script), "--depends-batch", "a", "--depends-ended")
    assert (database.tasks[1].batch, database.tasks[2].depends_batch) == ("a", "a")
    assert "the batch a, however they end" in run("show", "2")[0]
    assert "--depends-on and --depends-batch" in run("submit", str(script), "--depends-any", code=2)[1]
