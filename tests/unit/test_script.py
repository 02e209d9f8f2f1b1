"""What `continuum submit` takes from files: what a script requires, and in which order of precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from continuum.cli.script import read_requirements
from continuum.client import new_task
from continuum.client.sources import inline_requirements
from continuum.db.errors import InvalidTask

WITH_METADATA = """\
#!/usr/bin/env python
# /// script
# requires-python = ">=3.8"
# dependencies = [
#     "six==1.16.0",
#     "Attrs==25.1.0 ; python_version >= '3.8'",
# ]
# [tool.other]
# thing = "# ///"
# ///

import six
"""


def with_dependencies(toml: str) -> str:
    return f"# /// script\n# dependencies = {toml}\n# ///\nprint(1)\n"


def test_the_dependencies_that_a_script_lists_are_what_it_requires() -> None:
    assert read_requirements(None, WITH_METADATA) == "six==1.16.0\nAttrs==25.1.0 ; python_version >= '3.8'"


def test_a_file_wins_over_what_the_script_lists(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("six==1.17.0\n")
    assert read_requirements(file, WITH_METADATA) == "six==1.17.0\n"
    file.write_text("")
    assert read_requirements(file, WITH_METADATA) == "", "an empty file says that nothing is required"


@pytest.mark.parametrize(
    "script",
    [
        "print(1)",
        "# /// other\n# dependencies = ['six']\n# ///\n",
        "# /// script\n# dependencies = ['six']\n",
        "x = 1  # /// script\n# dependencies = ['six']\n# ///\n",
    ],
)
def test_a_script_without_a_block_says_nothing(script: str) -> None:
    assert inline_requirements(script) is None


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (
            with_dependencies("['six>=1']"),
            r"dependencies: 'six>=1' is not pinned; use six==VERSION; or give.*uv export",
        ),
        (with_dependencies("['six @ https://files.example/six.whl']"), "dependencies: a URL or a path is not allowed"),
        (with_dependencies("['six'"), "is no TOML"),
        (with_dependencies("'six'"), "is no list of texts"),
        (with_dependencies("[1]"), "is no list of texts"),
        (WITH_METADATA * 2, "more than one"),
    ],
)
def test_what_cannot_be_used_is_named(script: str, complaint: str) -> None:
    with pytest.raises(InvalidTask, match=complaint):
        inline_requirements(script)


def test_a_bad_line_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("six==1.16.0\n-r more.txt\n")
    with pytest.raises(InvalidTask, match=r"requirements\.txt, line 2: the option -r is not allowed"):
        read_requirements(file, "")
    with pytest.raises(InvalidTask, match="cannot be read"):
        read_requirements(tmp_path / "missing.txt", "")


def test_a_client_takes_requirements_as_text_or_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("six==1.16.0\n")
    assert new_task("import six", requirements=file) == new_task("import six", requirements="six==1.16.0\n")
    assert new_task("print(1)").requirements is None
