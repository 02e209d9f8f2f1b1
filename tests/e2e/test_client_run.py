"""What `run` gives back from real sandboxes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import trio

import continuum
from tests.support.installation import Installation
from tests.support.workers import start_worker

DEADLINE = 60.0
SCRIPT = """\
import datetime
import json
import sys

order = json.loads(payload)
print("looking at", order, end="")
if order["quantity"] < 0:
    raise ValueError("a negative quantity")
result = {"total": order["quantity"] * order["price"], "python": sys.version_info[:2], "on": datetime.date(2026, 1, 2)}
"""


def word_count(text: str, least: int = 1) -> dict[str, int]:
    return {word: count for word, count in Counter(re.findall(r"\w+", text)).items() if count >= least}


async def use(installation: Installation, folder: Path) -> None:
    """All of it on one worker."""
    file = folder / "order.py"
    file.write_text(SCRIPT)
    async with (
        start_worker(installation.environment | {"CONTAINER_MEMORY_MB": "128"}),
        continuum.connect(database_url=installation.environment["DATABASE_URL"]) as c,
    ):
        with trio.fail_after(DEADLINE):
            result = await c.run(file, {"quantity": 3, "price": 7})
            assert (result["total"], result["on"]) == (21, "2026-01-02")
            assert result["python"] >= [3, 8]
            with pytest.raises(continuum.TaskFailed, match="ValueError: a negative quantity") as caught:
                await c.run(file, {"quantity": -1}, max_attempts=1)
            assert str(caught.value).endswith(f"[{file}, line 8]")
            assert 'raise ValueError("a negative quantity")' in caught.value.traceback
            with pytest.raises(continuum.TaskTimedOut, match=r"ran longer than 0\.5 s"):
                await c.run("while True: pass", timeout=0.5, max_attempts=1)
            with pytest.raises(continuum.TaskOutOfMemory):
                await c.run("hoard = []\nwhile True:\n    hoard.append(bytearray(2**24))", max_attempts=1)
            with pytest.raises(continuum.BadResult, match="its result was lost: output cut"):
                await c.run("print('x' * 2**21)\nresult = 1")
            shipped = c.task(word_count)
            assert await shipped("to be or not to be", least=2) == {"to": 2, "be": 2}
            assert await shipped.map(["a a", "b"]) == [{"a": 2}, {"b": 1}]
            with trio.move_on_after(1) as scope:
                await c.run("import time\nprint('began', flush=True)\ntime.sleep(600)", name="asleep")
            assert scope.cancelled_caught
            (task,) = [each for each in await installation.database.fetch(range(1, 20)) if each.name == "asleep"]
            assert (await c.wait(task.id)).status == "cancelled"


async def test_run_in_bubblewrap(light: Installation, tmp_path: Path) -> None:
    await use(light, tmp_path)


async def test_run_in_docker(full: Installation, tmp_path: Path) -> None:
    await use(full, tmp_path)
