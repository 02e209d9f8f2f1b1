"""What the runner reads of its control group, of either version; the files are those that a kernel shows."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

import continuum.sandbox

FILES = {
    "version 2": {
        "memory.events": "low 0\nhigh 0\nmax 31\noom 2\noom_kill {}\noom_group_kill 9\n",
        "pids.events": "max {}\n",
        "cpu.stat": "usage_usec {}000000\nuser_usec 7\nsystem_usec 8\nnr_periods 0\n",
    },
    "version 1": {
        "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
        "pids/pids.events": "max {}\n",
        "cpuacct/cpuacct.usage": "{}000000000\n",
    },
}


def counters(root: Path) -> dict[str, Any]:
    """The runner's counters of a control group at `root`. The runner is a program, not a module: only they are taken from it."""
    source = Path(continuum.sandbox.__file__).with_name("runner.py").read_text()
    wanted = {"Counter", "OOM_KILLS", "REFUSED_FORKS", "CPU_TIME"}
    names: dict[str, Any] = {"os": os, "CONTROL_GROUP": f"{root}/"}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        if any((getattr(target, "id", None) or getattr(target, "name", None)) in wanted for target in targets):
            exec(compile(ast.Module([node], []), "runner.py", "exec"), names)
    return {name: names["Counter"](*names[name]) for name in sorted(wanted - {"Counter"})}


@pytest.mark.parametrize("version", FILES)
def test_what_the_kernel_counts_is_read_anew_each_time(version: str, tmp_path: Path) -> None:
    def count(number: int) -> None:
        for name, content in FILES[version].items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content.format(number))

    count(3)
    found = counters(tmp_path)
    for number in (3, 4, 12):
        count(number)
        assert {name: round(counter.read(), 6) for name, counter in found.items()} == dict.fromkeys(found, number)
    for counter in found.values():
        os.close(counter.descriptor)


def test_what_nobody_counts_is_zero_and_known_to_be_missing(tmp_path: Path) -> None:
    assert {(counter.exists, counter.read()) for counter in counters(tmp_path).values()} == {(False, 0)}
