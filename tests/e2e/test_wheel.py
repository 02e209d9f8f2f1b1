"""The wheel alone, in a clean environment: what a user of the package index gets."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from continuum.db.dialect import SCHEMA_VERSION
from tests.support.uv import ROOT, UV, require_uv, run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_uv()
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def continuum(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `continuum`, installed from the wheel into an environment with nothing else in it."""
    folder = tmp_path_factory.mktemp("clean")
    run(UV, "venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    python = str(folder / "venv/bin/python")
    run(UV, "pip", "install", "--quiet", "--python", python, f"{wheel}[embedded,bubblewrap]")
    return folder / "venv/bin/continuum"


def test_the_wheel_holds_the_schemas_the_pages_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "continuum/sql/postgres.sql",
        "continuum/sql/cockroach.sql",
        "continuum/py.typed",
        "continuum/sandbox/runner.py",
        "continuum/status/templates/live/headline.html",
        "continuum/status/static/style.css",
    } <= names
    assert not [name for name in names if name.startswith("tests")]


def test_an_installed_wheel_helps_migrates_and_runs_a_task(continuum: Path, tmp_path: Path) -> None:
    assert "worker" in run(str(continuum), "--help", cwd=tmp_path)
    tmp_path.chmod(0o755)
    settings = {
        "DB_DIALECT": "embedded",
        "EMBEDDED_DIR": str(tmp_path / "pg"),
        "SANDBOX": "bubblewrap",
        "API_PORT": "0",
    }
    assert f"version {SCHEMA_VERSION}" in run(str(continuum), "migrate", cwd=tmp_path, **settings)
    (tmp_path / "script.py").write_text("import json\nprint('hello', json.loads(payload)['who'])\n")
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    worker = subprocess.Popen(
        [str(continuum), "worker"], cwd=tmp_path, env=inherited | settings, stderr=subprocess.DEVNULL
    )
    try:
        output = run(
            str(continuum), "submit", "script.py", "--payload", '{"who": "wheel"}', "--wait", "--timeout", "60",
            cwd=tmp_path, **settings,
        )  # fmt: skip
    finally:
        worker.terminate()
        assert worker.wait(40) == 0
    assert output == "hello wheel\n"
