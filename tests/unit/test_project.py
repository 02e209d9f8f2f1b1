"""What the project says of itself is true: settings, links, layers, compose files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from continuum.cli import errors
from continuum.config import Settings, load_settings
from docs.generators.settings import sections
from docs.generators.source import attribute_docstrings
from tests.support.documents import pages

ROOT = Path(__file__).parents[2]
VARIABLES = sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_setting_is_in_the_readme_and_in_the_example(variable: str) -> None:
    assert f"`{variable}`" in (ROOT / "README.md").read_text()
    assert re.search(rf"^#?{variable}=", (ROOT / ".env.example").read_text(), re.MULTILINE)


def test_the_example_holds_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    bare = load_settings()
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    assert load_settings() == bare


def test_the_example_names_nothing_that_does_not_exist() -> None:
    named = re.findall(r"^#?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(named) == VARIABLES


def test_the_readme_lists_no_setting_that_does_not_exist() -> None:
    table = (ROOT / "README.md").read_text().split("## Settings")[1].split("\n## ")[0]
    first = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`([A-Z][A-Z_]+)`", first))
    assert listed - {"CONTINUUM_ENV_FILE"} == set(VARIABLES)


def test_every_setting_says_what_it_means_and_is_in_one_section_of_the_reference() -> None:
    """The reference is made of the strings below the fields, in the sections of the example."""
    assert sorted(attribute_docstrings(Settings)) == sorted(Settings.model_fields)
    assert sorted(name for variables in sections().values() for name in variables) == VARIABLES


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_exit_code_is_in_the_readme() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    readme = (ROOT / "README.md").read_text().split("## Exit codes")[1]
    assert all(re.search(rf"^\| {code} \|", readme, re.MULTILINE) for code in codes)


def test_only_the_bridge_knows_asyncio() -> None:
    """trio-asyncio and asyncio are imported in one module, and in none by a way around the linter."""
    users = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "continuum").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(
            name.split(".")[0] in ("asyncio", "trio_asyncio")
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        )
    }
    assert users == {"continuum/db/connection.py"}


def test_the_runner_needs_nothing_but_the_standard_library_of_python_3_8() -> None:
    source = (ROOT / "continuum/sandbox/runner.py").read_text()
    ast.parse(source, feature_version=(3, 8))
    imported = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported <= {
        "_signal", "_socket", "atexit", "ctypes", "gc", "itertools", "json", "os", "resource", "select", "stat", "struct",
        "sys", "time",
    }  # fmt: skip


def test_the_workflow_and_the_compose_file_name_the_same_cockroachdb() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    compose = (ROOT / "deploy/cockroach-compose.yml").read_text()
    (version,) = re.findall(r"COCKROACH_VERSION: (\S+)", workflow)
    assert set(re.findall(r"cockroachdb/cockroach:([^}\s]+)", compose)) == {version}
