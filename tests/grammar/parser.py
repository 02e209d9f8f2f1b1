"""CockroachDB's own grammar, without a server: the Go program beside this file, built once for each version of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
CACHE = SOURCES.parents[1] / ".cache" / "grammar"
BUILD_DEADLINE = 900
"""Seconds; the first build compiles all of the grammar, on a slow machine with one core."""
PARSE_DEADLINE = 60


class NotBuilt(Exception):
    """The program could not be built; says why."""


def find_go() -> str | None:
    """The `go` on PATH."""
    return shutil.which("go")


def build() -> Path:
    """The program, from the cache when nothing has changed. Raises `NotBuilt`."""
    go = find_go()
    if go is None:
        raise NotBuilt("there is no `go` on PATH")
    files = [SOURCES / name for name in ("main.go", "go.mod", "go.sum")]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
    program = CACHE / f"parse-{digest}"
    if program.exists():
        return program
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(
            [go, "build", "-trimpath", "-o", unfinished, "."],
            cwd=SOURCES,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_DEADLINE,
        )
    except subprocess.CalledProcessError as error:
        raise NotBuilt(f"`go build` failed: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise NotBuilt(f"`go build` took longer than {BUILD_DEADLINE} s") from None
    unfinished.replace(program)
    return program


def refused(program: Path, statements: Sequence[str]) -> dict[str, str]:
    """Those statements that the grammar refuses, or takes for more or fewer than one, each with what is wrong."""
    questions = "\n".join(json.dumps({"statement": statement}) for statement in statements)
    result = subprocess.run(
        [program], input=questions, capture_output=True, text=True, check=True, timeout=PARSE_DEADLINE
    )
    problems = {}
    for statement, line in zip(statements, result.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        if answer["error"]:
            problems[statement] = answer["error"]
        elif answer["statements"] != 1:
            problems[statement] = f"{answer['statements']} statements instead of one"
    return problems
