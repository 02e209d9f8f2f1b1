"""The demo itself, as `make demo` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from continuum.demo.workload import FAILING, WORKING, make_workload
from tests.support.workers import ROOT


def test_the_workload_holds_every_kind_and_the_failing_ones_twice() -> None:
    names = [kind.name for kind, _ in make_workload(300)]
    assert len(names) == 310
    assert {kind.name for kind in (*WORKING, *FAILING)} == set(names)
    assert all(names.count(kind.name) == 2 for kind in FAILING)


def test_the_demo_runs_from_nothing_and_checks_every_outcome(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "continuum", "demo", "--tasks", "40"],
        cwd=tmp_path,
        env=plain | {"PYTHONPATH": str(ROOT), "SANDBOX": "bubblewrap"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50/50 tasks done" in done.stdout
    assert "every outcome is the expected one" in done.stdout
    assert "dashboard http://127.0.0.1:" in done.stdout
