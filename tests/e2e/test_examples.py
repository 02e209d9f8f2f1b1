"""The examples, run as a newcomer runs them, on one embedded database that stays up; and `continuum.local` by itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import continuum
from continuum.db.embedded import EmbeddedServerError
from continuum.sandbox.protocol import BackendUnavailable
from tests.support.workers import ROOT

DEADLINE = 60.0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the newcomer is, and where the user of PostgreSQL may go. It runs there for as long as this module does."""
    with tempfile.TemporaryDirectory(prefix="newcomer-") as name:
        made = Path(name)
        made.chmod(0o755)
        with continuum.connect_blocking(db_dialect="embedded", embedded_dir=made / ".continuum/postgres"):
            yield made


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | {"PYTHONPATH": str(ROOT), "SANDBOX": "bubblewrap", "PYTHONUNBUFFERED": "1"} | variables


def run_example(folder: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *arguments],
        cwd=folder,
        env=environment(DATABASE_URL="postgresql://nobody@127.0.0.1:9/of-somebody-else"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


EXPECTED = {
    "hello": [r"^Hello world, from Python 3\.\d+", r"^The 90th Fibonacci number is 2880067194370816120$"],
    "erp_scripting": [
        r"^list price +Bob: +108\.00",
        r"^volume discount +Bob: +91\.80  \(15 % off for 144 pieces\)$",
        r"^loyal customers +Ada: task \d+ \(loyal customers\) failed: KeyError: 'since' \[script\.py, line 5\]$",
        r"^ +years = 2026 - order\[\"customer\"\]\[\"since\"\]$",
        r"^loyal customers +Bob: +70\.00",
    ],
    "untrusted_code": [
        r"^Ada, right +right$", r"^Bob, wrong +wrong: 100$", r"^Cem, printing +right$", r"^Dan, a typo +failed: SyntaxError",
        r"^Eve, for ever +stopped: it took", r"^Fay, all memory +stopped: it used", r"^Gil, phones home +failed: urllib",
        r"^Hal, leaves a file +wrong: 0$", r"^Ivy, looks for it +failed: FileNotFoundError",
        r"^Jon, stops others +failed: ProcessLookupError",
    ],
    "multi_tenant": [
        r"^7 clicks made 5 tasks$", r"^acme +report of month 1: \{'mean': 58, 'best': 112\}$",
        r"^tasks by tenant: \{'globex': 2, 'initech': 2, 'acme': 1\}$",
    ],
    "outbox": [
        r"^refused: nobody has that many$", r"^3 orders, 3 tasks; of the refused one 0 tasks are left$",
        r"^while it was booked: the power failed$", r"^first time: 3 booked$", r"^second time: 0 booked$",
        r"^Ada owes 58\.00 more$", r"^Bob owes 108\.00 more$",
    ],
    "batch_jobs": [
        r"^149 of 150 parts of job \w+ in", r"^pi is about 3\.1",
        r"^failed: task \d+ \(hits\) failed: ValueError: part 13 never works \[.*batch_jobs\.py, line 24\]$",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_does_what_it_says(folder: Path, name: str) -> None:
    said = run_example(folder, name)
    for line in EXPECTED[name]:
        assert re.search(line, said, re.MULTILINE), f"{line}\n{said}"


def test_a_batch_that_is_started_again_runs_nothing_twice(folder: Path) -> None:
    first = run_example(folder, "batch_jobs")
    with continuum.connect_blocking(db_dialect="embedded", embedded_dir=folder / ".continuum/postgres") as c:
        before = c.statistics().total
        assert run_example(folder, "batch_jobs").splitlines()[1:] == first.splitlines()[1:]
        assert c.statistics().total == before


def test_there_is_no_example_without_a_test_and_the_list_names_all() -> None:
    examples = {file.stem for file in (ROOT / "examples").glob("*.py")}
    assert examples == set(EXPECTED)
    listed = (ROOT / "examples/README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in listed for name in examples)


# -- continuum.local ---------------------------------------------------------------------------------------------------


async def test_errors_of_the_block_come_out_as_they_are(folder: Path) -> None:
    settings = {"embedded_dir": folder / ".continuum/postgres", "sandbox": "bubblewrap"}
    with pytest.raises(continuum.TaskFailed, match="ZeroDivisionError"):
        async with continuum.local(**settings) as c:
            await c.run("1 / 0", max_attempts=1)
    with trio.move_on_after(DEADLINE) as scope:
        async with continuum.local(**settings) as c:
            left = await c.submit("import time\ntime.sleep(600)")
            async for stream, _ in c.logs(await c.submit("print('runs')")):
                assert stream
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    async with continuum.connect(db_dialect="embedded", embedded_dir=settings["embedded_dir"]) as c:
        assert (await c.fetch(left)).status == "pending", "it went back to the queue"
        assert not [worker for worker in await c.database.workers() if worker.alive]
        await c.cancel(left)


@pytest.mark.parametrize("way", ["local", "local_blocking"])
def test_ctrl_c_ends_it_in_order(folder: Path, way: str) -> None:
    uses = {
        "local": "async def main():\n    async with continuum.local() as c:\n        print('up')\n        await c.run(SLEEP)\n"
        "trio.run(main)",
        "local_blocking": "with continuum.local_blocking() as c:\n    print('up')\n    c.run(SLEEP)",
    }
    program = f"import continuum, trio\nSLEEP = 'import time; time.sleep(600)'\n{uses[way]}"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with continuum.connect_blocking(db_dialect="embedded", embedded_dir=folder / ".continuum/postgres") as c:
            began = time.monotonic()
            while not c.statistics().running and time.monotonic() - began < DEADLINE:
                time.sleep(0.02)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=DEADLINE)
            assert time.monotonic() - began < 30
            assert said.splitlines()[-1] == "KeyboardInterrupt", said
            statistics = c.statistics()
    assert (statistics.running, statistics.pending) == (0, 0), "what the program waited for was cancelled"


def test_what_is_missing_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot be used"):
        continuum.local_blocking(embedded_dir=tmp_path / "file/folder", sandbox="bubblewrap").open()
    with pytest.raises(continuum.config.ConfigurationError, match="SANDBOX='cardboard'"):
        continuum.local_blocking(sandbox="cardboard").open()


def test_without_a_sandbox_it_says_why(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(BackendUnavailable, match="no Docker daemon"):
        continuum.local_blocking(embedded_dir=folder / ".continuum/postgres", sandbox="docker").open()
