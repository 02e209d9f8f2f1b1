"""The wheel alone, in a clean environment: what a user of the package index gets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from continuum.db.dialect import SCHEMA_VERSION
from tests.support.uv import ROOT, UV, require_uv, run

SOURCES = ("continuum", "sql", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".env.example", ".gitignore")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the source distribution, and of the wheel that was built from that."""
    require_uv()
    folder = tmp_path_factory.mktemp("dist")
    run(UV, "build", "--quiet", "--out-dir", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (built,) = distributions.glob("*.whl")
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


def test_the_metadata_says_what_an_index_shows(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(archive.read(name), validate=True)
        entry_points = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert (metadata.name, metadata.license_expression) == ("continuum-worker", "Apache-2.0")
    assert metadata.description_content_type == "text/markdown"
    assert "Typing :: Typed" in (metadata.classifiers or [])
    optional: defaultdict[bool, set[str]] = defaultdict(set)
    for requirement in map(str, metadata.requires_dist or []):
        if "extra ==" in requirement:
            optional["'all'" in requirement.replace('"', "'")].add(re.split(r"[^\w-]", requirement)[0])
    assert optional[True] == optional[False] != set(), "all of them"
    assert "continuum-worker = continuum.cli:main" in entry_points, "what pipx run and uvx start"


def test_the_same_sources_make_the_same_bytes_wherever_and_whenever(distributions: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, elsewhere / name)
    for path in elsewhere.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (10**9, 10**9))
    run(UV, "build", "--quiet", "--out-dir", str(tmp_path / "dist"), cwd=elsewhere)
    built = {file.name: file.read_bytes() for file in (tmp_path / "dist").iterdir() if file.name != ".gitignore"}
    assert len(built) == 2
    assert built == {name: (distributions / name).read_bytes() for name in built}


def test_it_runs_without_being_installed(wheel: Path, tmp_path: Path) -> None:
    said = run(
        UV, "tool", "run", "--python", sys.executable, "--from", str(wheel), "continuum-worker", "--help", cwd=tmp_path
    )
    assert "worker" in said


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
