"""Prometheus' own tool, which understands its queries and rules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.conftest import require

FETCHED = Path(__file__).parents[2] / ".cache" / "services" / "promtool"


def promtool(*arguments: str | Path) -> None:
    """Run it; fail with what it says when it is not content. Skips the test where there is none."""
    found = shutil.which("promtool") or (str(FETCHED) if FETCHED.exists() else None)
    require("promtool", found is not None, "no promtool: `make services` fetches it")
    done = subprocess.run([found or "", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
