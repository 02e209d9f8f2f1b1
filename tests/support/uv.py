"""The program uv, which builds and installs, and runs tools of the package index that are no dependency of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
UV = shutil.which("uv") or str(ROOT / ".cache/uv/bin/uv")


def require_uv() -> None:
    require("uv", Path(UV).exists(), "uv builds and installs; make venv puts it into .cache")


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """What a command says that ends well, in an environment without ours."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
