"""What the program inside a builder makes of what uv said and left. It is no module: its parts are taken from its text."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import continuum.sandbox

MEBIBYTE = 1024 * 1024


@pytest.fixture
def installer() -> dict[str, Any]:
    source = Path(continuum.sandbox.__file__).with_name("requirements_installer.py").read_text()
    names: dict[str, Any] = {}
    parts: list[ast.stmt] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.Assign | ast.ClassDef | ast.FunctionDef)
    ]
    exec(compile(ast.Module(parts, []), "requirements_installer.py", "exec"), names)
    return names


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    site, layer = tmp_path / "site", tmp_path / "layer"
    site.mkdir()
    layer.mkdir()
    yield site, layer
    # Python 3.11's own way to remove a tree, which pytest goes, is as deep as the tree.
    subprocess.run(["rm", "-rf", str(site), str(layer)], check=True)


def test_files_and_directories_are_copied_with_modes_of_the_installers_own(
    installer: dict[str, Any], places: tuple[Path, Path]
) -> None:
    site, layer = places
    (site / "package" / "empty").mkdir(parents=True)
    (site / "package" / "__init__.py").write_bytes(b"x" * 5000)
    (site / "run").write_text("run")
    (site / "run").chmod(0o4777)
    assert installer["copy_tree"](str(site), str(layer), 1) == (2 * 4096 + 8192 + 4096, 2)
    assert (layer / "package" / "__init__.py").read_bytes() == b"x" * 5000
    assert (layer / "package" / "empty").is_dir()
    assert (layer / "run").stat().st_mode & 0o7777 == 0o755 & ~_mask()


def test_a_file_with_holes_is_not_written_out_beyond_the_limit(
    installer: dict[str, Any], places: tuple[Path, Path]
) -> None:
    site, layer = places
    (site / "small").write_bytes(b"x" * MEBIBYTE)
    with (site / "holes").open("wb") as file:
        file.truncate(1024 * MEBIBYTE)
    with pytest.raises(installer["Failed"]) as failure:
        installer["copy_tree"](str(site), str(layer), 2)
    assert failure.value.answer == {"step": "copy", "code": None, "said": "with holes, it has over 2 MB"}
    assert sum(path.stat().st_size for path in layer.iterdir()) <= 2 * MEBIBYTE


def test_the_limit_is_that_of_all_files_together(installer: dict[str, Any], places: tuple[Path, Path]) -> None:
    site, layer = places
    for name in ("a", "b", "c"):
        (site / name).write_bytes(b"x" * MEBIBYTE)
    assert installer["copy_tree"](str(site), str(layer), 3)[1] == 3
    (site / "d").write_bytes(b"x")
    other = layer / "other"
    other.mkdir()
    with pytest.raises(installer["Failed"], match="over 3 MB"):
        installer["copy_tree"](str(site), str(other), 3)


def test_a_tree_deeper_than_pythons_stack_is_copied(installer: dict[str, Any], places: tuple[Path, Path]) -> None:
    site, layer = places
    deepest = site
    for _ in range(sys.getrecursionlimit() + 200):
        deepest /= "d"
        deepest.mkdir()
    (deepest / "file").write_text("found")
    installer["copy_tree"](str(site), str(layer), 1)
    assert (layer / deepest.relative_to(site) / "file").read_text() == "found"


def test_what_is_neither_a_file_nor_a_directory_is_refused(
    installer: dict[str, Any], places: tuple[Path, Path]
) -> None:
    site, layer = places
    os.mkfifo(site / "pipe")
    with pytest.raises(installer["Failed"], match="pipe is neither a file nor a directory"):
        installer["copy_tree"](str(site), str(layer), 1)


def test_of_a_long_complaint_both_ends_are_kept_in_whole_words(installer: dict[str, Any]) -> None:
    said = b"error: No solution found\n" + b"https://user:password@index/ " * 10_000 + b"\ncause: 401 Unauthorized"
    kept = installer["read_both_ends"](io.BytesIO(said))
    assert kept.startswith(b"error: No solution found\n")
    assert kept.endswith(b"\ncause: 401 Unauthorized")
    assert kept.count(b"password") == kept.count(b"https://user:password@index/ ") > 100
    assert len(kept) <= installer["MOST_SAID"] + 10


def test_of_a_short_complaint_all_is_kept(installer: dict[str, Any]) -> None:
    assert installer["read_both_ends"](io.BytesIO(b"error: no\nspace")) == b"error: no\nspace"


def _mask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
