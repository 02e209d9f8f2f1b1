"""What stands in the log lines, whoever writes them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from continuum.config import Settings
from continuum.db.memory import MemoryDatabase
from continuum.logs import configure_logs, tell_attempt, trace_fields
from continuum.model import NewTask
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.telemetry import Telemetry
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import settings
from tests.support.telemetry import TRACEPARENT, Recorded

TRACE_ID, SPAN_ID = TRACEPARENT.split("-")[1:3]


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line of the text, each of which must be one object."""
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_about_an_attempt_tells_its_task_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings.model_validate({"log_format": "json"}))

    async def attempt() -> None:
        tell_attempt(7, 2, TRACEPARENT)
        structlog.get_logger().info("ours")
        logging.getLogger("some.library").warning("a library's")
        structlog.get_logger().info("another's", task_id=8)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
        structlog.get_logger().info("nobody's")

    trio.run(main)
    ours, library, another, nobodys = json_lines(capsys.readouterr().err)
    told = {"task_id": 7, "attempt": 2, "trace_id": TRACE_ID, "span_id": SPAN_ID, "trace_flags": "01"}
    for line in (ours, library):
        assert told.items() <= line.items()
    assert another["task_id"] == 8
    assert not {"attempt", "trace_id"} & another.keys()
    assert not told.keys() & nobodys.keys()


def test_people_see_the_same_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings.model_validate({"log_format": "console"}))

    async def attempt() -> None:
        tell_attempt(7, 2, TRACEPARENT)
        structlog.get_logger().info("ours")

    trio.run(attempt)
    (line,) = capsys.readouterr().err.splitlines()
    for field in ("task_id=7", "attempt=2", f"trace_id={TRACE_ID}", f"span_id={SPAN_ID}"):
        assert field in line


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-xyz-1-01", TRACEPARENT + "\n"])
def test_a_malformed_traceparent_tells_nothing(traceparent: str | None) -> None:
    assert trace_fields(traceparent) == {}


@pytest.mark.parametrize("traced", [True, False])
async def test_the_lines_of_a_worker_s_attempts_tell_the_span_of_the_run(
    traced: bool, capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    """Where the worker does not trace, the producer's."""
    configure_logs(Settings.model_validate({"log_format": "json", "log_level": "debug"}))
    recorded = Recorded()
    telemetry = recorded.telemetry if traced else Telemetry()
    database, shutdown = MemoryDatabase(), Shutdown()
    (task_id,) = await database.submit([NewTask(code="hello", traceparent=TRACEPARENT)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            supervise, settings(), WorkerState(id="w", slots=2), database, FakeBackend(), telemetry, shutdown
        )
        with trio.fail_after(600):
            while not (await database.fetch([task_id]))[0].finished_for_good:
                await trio.sleep(0.1)
        shutdown.request()
    (line,) = [line for line in json_lines(capsys.readouterr().err) if line["event"] == "an attempt ended"]
    assert (line["task_id"], line["attempt"], line["trace_id"]) == (task_id, 1, TRACE_ID)
    span = f"{recorded.spans['execute tasks'].context.span_id:016x}" if traced else SPAN_ID
    assert line["span_id"] == span


def test_a_warning_of_python_s_is_a_line_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings.model_validate({"log_format": "json"}))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("of\nseveral lines", stacklevel=1)
    (line,) = json_lines(capsys.readouterr().err)
    assert "of\nseveral lines" in line["event"]
    assert line["level"] == "warning"


def test_lines_of_many_threads_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Pieces(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Pieces())
    configure_logs(Settings.model_validate({"log_format": "json"}))

    def talk() -> None:
        for number in range(50):
            structlog.get_logger().info("one", number=number)
            logging.getLogger("library").warning("another")

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 400
    assert all(text.endswith("\n") and json.loads(text) for text in written), "each in one piece"


def test_a_reader_that_has_gone_costs_lines_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    configure_logs(Settings.model_validate({"log_format": "json"}))
    structlog.get_logger().error("nobody reads this")
    logging.getLogger("library").error("nor this")


def run(program: str) -> subprocess.CompletedProcess[str]:
    start = (
        "import os, threading, structlog\n"
        "from continuum.config import Settings\n"
        "from continuum.logs import configure_logs, log_what_nobody_caught\n"
        "configure_logs(Settings.model_validate({'log_format': 'json'})); log_what_nobody_caught()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_nobody_caught_is_one_line_and_the_last_one() -> None:
    done = run(
        "def fail(): raise ValueError('a reason')\n"
        "thread = threading.Thread(target=fail, name='helper'); thread.start(); thread.join()\n"
        "raise ExceptionGroup('several', [ValueError('the\\ncause')])\n"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    thread, program = json_lines(done.stderr)
    assert (thread["thread"], thread["exception"][0]["exc_value"]) == ("helper", "a reason")
    assert program["level"] == "critical"
    assert "the\\ncause" in json.dumps(program["exception"])


def test_no_line_is_lost_when_the_process_is_killed() -> None:
    done = run(
        "for number in range(1000): structlog.get_logger().info('line', number=number)\nos.kill(os.getpid(), 9)\n"
    )
    assert done.returncode == -9
    assert [line["number"] for line in json_lines(done.stderr)] == list(range(1000))
