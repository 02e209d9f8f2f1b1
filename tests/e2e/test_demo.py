"""The demo itself, as `make demo` runs it, and that it notices what is not as it should be."""

from __future__ import annotations

import datetime as dt
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from continuum.demo.run import _report, percentile
from continuum.demo.workload import FAILING, WORKING, Kind, make_workload
from continuum.model import Status, TaskRecord
from tests.support.docker import require_docker
from tests.support.workers import ROOT


def test_the_workload_holds_every_kind_and_the_failing_ones_twice() -> None:
    names = [kind.name for kind, _ in make_workload(300)]
    assert len(names) == 310
    assert {kind.name for kind in (*WORKING, *FAILING)} == set(names)
    assert all(names.count(kind.name) == 2 for kind in FAILING)


def record(kind: Kind, **values: object) -> TaskRecord:
    """What a right run of this kind leaves, but for `values`."""
    began = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    right: dict[str, object] = {
        "id": 1, "status": kind.expected, "created_at": began, "finished": began + dt.timedelta(seconds=2),
        "output": "Hello from a sandbox\n",
    }  # fmt: skip
    fields: dict[str, object] = dict.fromkeys(TaskRecord.__slots__)
    return TaskRecord(**fields | right | values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"output": "Hello\n"}, {"output": None}, {"status": Status.FAILED, "last_error": "broke"}]
)
def test_an_outcome_that_is_not_the_expected_one_is_counted_and_named(wrong: dict[str, object]) -> None:
    hello = WORKING[0]
    console = Console(file=io.StringIO(), width=120)
    assert _report([hello, hello], [record(hello), record(hello)], 1.0, console) == 0
    assert "every outcome is the expected one" in console.file.getvalue()  # type: ignore[attr-defined]
    assert _report([hello, hello], [record(hello), record(hello, **wrong)], 1.0, console) == 1
    assert "not as expected: hello, task 1" in console.file.getvalue()  # type: ignore[attr-defined]


def test_no_kind_is_content_with_a_wrong_result() -> None:
    for kind in (*WORKING, *FAILING):
        wrong = record(kind, output='"nonsense"', last_error="another reason", exit_code=1, payload="{}")
        assert not kind.check(wrong), kind.name


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([float(n) for n in range(101)], 0.95) == 95.0


@contextmanager
def demo(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`continuum demo` in an empty folder that PostgreSQL's user can reach; ended when the block ends."""
    folder.chmod(0o755)
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "continuum", "demo", "--tasks", "16", *arguments],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(ROOT), "API_PORT": "0"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def printed_until(process: subprocess.Popen[str], text: str) -> str:
    """What it prints up to a line that holds `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"it ended without saying {text!r}: {seen}")


def server_is_gone(folder: Path) -> bool:
    return not (folder / ".continuum/demo/data/postmaster.pid").exists()


def test_the_demo_runs_from_nothing_and_checks_every_outcome(tmp_path: Path) -> None:
    with demo(tmp_path, SANDBOX="bubblewrap") as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "26/26 tasks done" in output
    assert "every outcome is the expected one" in output
    assert re.search(r"dashboard http://127\.0\.0\.1:\d+/", output)
    assert server_is_gone(tmp_path)


@pytest.mark.parametrize("missing", ["daemon", "image"])
def test_without_docker_or_an_image_it_takes_bubblewrap_and_says_why(tmp_path: Path, missing: str) -> None:
    if missing == "daemon":
        variables, reason = {"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}, "no Docker daemon at"
    else:
        require_docker()
        variables, reason = {"CONTAINER_IMAGE": "127.0.0.1:9/no/such:image"}, "the image 127.0.0.1:9/no/such:image"
    with demo(tmp_path, **variables) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"Tasks run in bubblewrap and not in Docker: {reason}" in output
    assert "sandbox bubblewrap" in output


def test_ctrl_c_ends_it_and_its_server(tmp_path: Path) -> None:
    with demo(tmp_path, "--tasks", "200", SANDBOX="bubblewrap") as process:
        printed_until(process, "tasks done")
        process.send_signal(signal.SIGINT)
        printed_until(process, "The demo was stopped before its end.")
        assert process.wait(60) == 1
    assert server_is_gone(tmp_path)


def test_the_dashboard_stays_up_when_asked_to(tmp_path: Path) -> None:
    with demo(tmp_path, "--keep", SANDBOX="bubblewrap") as process:
        said = printed_until(process, "stays up until Ctrl-C")
        address = re.findall(r"http://[\d.]+:\d+", said)[-1]
        answer = httpx.get(f"{address}/global-status").json()
        assert answer["total_tasks"] == 26
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert time.monotonic() - began < 30
