"""How errors become lines and exit codes, and what the views show."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re

import pytest
import structlog
import typer
from typer.testing import CliRunner

from continuum.cli import app, errors, views
from continuum.cli.errors import explained, only_cause
from continuum.client import TaskNotFound, WaitTimeout
from continuum.config import ConfigurationError, Settings
from continuum.db.errors import DatabaseUnavailable, DialectMismatch, InvalidTask, OutcomeUnknown, SchemaMismatch
from continuum.logs import configure_logs
from continuum.model import NewTask, Statistics, TaskRecord, WorkerRecord
from continuum.sandbox.protocol import BackendUnavailable
from continuum.status.errors import StatusServerError
from continuum.webhook import parse_secrets, tenant_secret


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (InvalidTask("bad"), 2, ""),
        (ConfigurationError("bad"), 2, ""),
        (StatusServerError("bad"), 2, ""),
        (SchemaMismatch("bad"), 3, ""),
        (DialectMismatch("bad"), 3, ""),
        (DatabaseUnavailable("bad"), 3, "DATABASE_URL"),
        (OutcomeUnknown("bad"), 3, "DATABASE_URL"),
        (BackendUnavailable("bad"), 4, "continuum doctor"),
        (TaskNotFound("bad"), 5, ""),
        (WaitTimeout("bad"), 6, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_every_error_that_a_user_can_mend_has_a_code_and_a_line(
    error: BaseException, code: int, advice: str, depth: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(depth):
        error = BaseExceptionGroup("from a nursery", [error])
    with pytest.raises(typer.Exit) as ended, explained():
        raise error
    written = capsys.readouterr().err
    assert ended.value.exit_code == code
    assert not written or written.startswith("continuum: bad\n")
    assert advice in written
    assert len(written.splitlines()) <= 2


def test_what_nobody_expected_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError
    several = ExceptionGroup("several", [DatabaseUnavailable("one"), ZeroDivisionError()])
    assert only_cause(several) is several
    with pytest.raises(ExceptionGroup), explained():
        raise several


def test_every_line_of_a_long_message_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), explained():
        raise ConfigurationError("one\ntwo")
    written = capsys.readouterr().err
    assert (
        written
        == "continuum: one\ncontinuum: two\ncontinuum: change it where it is set: in the environment or in .env\n"
    )


def test_without_arguments_it_names_the_commands_to_start_with() -> None:
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.findall(r"^  continuum (\w+)", result.stdout, re.MULTILINE) == ["run", "doctor", "worker"]
    assert "continuum --help" in result.stdout


def test_help_lists_every_command_and_every_exit_code() -> None:
    printed = re.sub(r"\s+", " ", CliRunner().invoke(app, ["--help"]).output)
    for command in (
        "worker",
        "run",
        "submit",
        "wait",
        "logs",
        "cancel",
        "status",
        "migrate",
        "demo",
        "bench",
        "doctor",
        "socket-proxy",
    ):
        assert f" {command} " in printed
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert all(re.search(rf"\b{code} \w", printed) for code in codes), printed


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["wait"], ["wait", "seven"], ["wait", "7", "--timeout", "soon"], ["submit"]]
)
def test_wrong_usage_has_its_own_code(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == errors.USAGE


@pytest.mark.parametrize(("arguments", "code", "said"), [(["--help"], 0, "--quick"), (["nonsense"], 2, "no such part")])
def test_bench_hands_its_arguments_to_the_benchmarks(
    arguments: list[str], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert CliRunner().invoke(app, ["bench", *arguments]).exit_code == code
    assert said in "".join(capfd.readouterr())


def record(**values: object) -> TaskRecord:
    fields: dict[str, object] = dict.fromkeys(TaskRecord.__slots__)
    return TaskRecord(**fields | {"id": 2**60, "name": "", "status": "pending"} | values)  # type: ignore[arg-type]


def test_a_task_as_json_keeps_its_id_and_its_payload() -> None:
    at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    shown = json.loads(json.dumps(views.task_as_json(record(payload='{"a": [1]}', created_at=at))))
    assert shown["id_str"] == str(2**60)
    assert shown["payload"] == {"a": [1]}
    assert shown["created_at"] == "2026-01-02T03:04:05+00:00"
    assert set(TaskRecord.__slots__) <= set(shown)
    assert NewTask().payload is None


def worker(**values: object) -> WorkerRecord:
    at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    fields: dict[str, object] = {
        "id": "host-1-abcd", "host": "host", "pid": 1, "version": "1", "slots": 4, "running": 2, "sandbox": "docker (runc)",
        "started_at": at, "seen_at": at, "stopped_at": None, "alive": True,
        "completed": 5, "failed": 1, "cancelled": 0, "malicious": 0, "finished_last_hour": 6,
    }  # fmt: skip
    return WorkerRecord(**fields | values)  # type: ignore[arg-type]


def test_the_queue_and_the_workers_are_plain_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    statistics = Statistics(1, 2, 3, 4, 5, 6, 7, 0.25, 120.0, 1)
    gone = worker(id="gone", alive=False, stopped_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    views.print_system(statistics, [worker(), worker(id="lost", alive=False), gone], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [["pending", "1"], ["scheduled", "2"], ["running", "3"]]
    assert "worker     host-1-abcd: alive, 2 of 4 slots in use, docker (runc)" in lines
    assert [line.split(": ")[1].split(",")[0] for line in lines[-3:]] == ["alive", "lost", "stopped"]
    views.print_system(statistics, [worker()], as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["pending"], shown["total"], shown["worker_list"][0]["id"]) == (1, 28, "host-1-abcd")


def test_logs_are_json_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings.model_validate({}))
    structlog.get_logger().info("claimed", tasks=3)
    structlog.get_logger().debug("too much")
    logging.getLogger("hypercorn").warning("a library warns of %s", "this")
    logging.getLogger("hypercorn").info("a library talks")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["tasks"], first["level"]) == ("claimed", 3, "info")
    assert (second["event"], second["level"]) == ("a library warns of this", "warning")
    assert first["timestamp"].endswith("Z")


def test_an_exception_in_the_logs_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings.model_validate({"log_format": "json"}))
    try:
        raise ValueError("a reason")
    except ValueError:
        structlog.get_logger().exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "a reason"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_in_the_logs_shows_no_variables(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure_logs(Settings.model_validate({"log_format": log_format}))

    def fail(payload: str) -> None:
        raise ValueError("a reason")

    for logger in (structlog.get_logger(), logging.getLogger("hypercorn")):
        try:
            fail("can" + "ary")
        except ValueError:
            logger.exception("it failed")
    written = capsys.readouterr().err
    assert written.count("it failed") == 2
    assert "a reason" in written
    assert "canary" not in written


def test_logs_are_for_people_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings.model_validate({"log_format": "console", "log_level": "warning"}))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud", tasks=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "loud" in line
    assert "tasks=3" in line


def test_secrets_of_webhooks_are_made_and_tenants_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made, other = (CliRunner().invoke(app, ["webhook-secret"]).stdout.strip() for _ in range(2))
    assert made != other
    refused = CliRunner().invoke(app, ["webhook-secret", "--tenant", "acme"])
    assert (refused.exit_code, "WEBHOOK_SECRET is not set" in refused.output) == (2, True)
    monkeypatch.setenv("WEBHOOK_SECRET", f"{made},{other}")
    printed = CliRunner().invoke(app, ["webhook-secret", "--tenant", "acme"]).stdout.split()
    assert parse_secrets(",".join(printed)) == tuple(
        tenant_secret(key, "acme") for key in parse_secrets(f"{made},{other}")
    )
