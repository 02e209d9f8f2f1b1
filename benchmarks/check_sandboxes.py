"""Drives sandboxes of whatever version of Continuum is imported: a program of its own, started by `benchmarks.check`.

    PYTHONPATH=CHECKOUT python benchmarks/check_sandboxes.py COUNT SECONDS

Prints as JSON where Continuum was imported from, the cold start of one sandbox (seconds), and hello tasks a second in COUNT. Of
Continuum it uses only what every version of it has.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import trio

import continuum
from continuum.config import load_settings
from continuum.model import RunRequest
from continuum.sandbox import choose_backend

HELLO = "print('hello')"


async def main(count: int, seconds: float) -> None:
    backend = await choose_backend(load_settings(), "benchmark")
    request = RunRequest(task_id=1, attempt=1, code=HELLO, payload="null", timeout=30.0, output_limit=65536)
    sandboxes: list[Any] = []
    done = 0

    async def repeat(sandbox: Any, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            outcome = await sandbox.run(request, lambda *_: None)
            assert outcome.output == "hello\n", outcome
            done += 1

    async def drive(length: float) -> float:
        nonlocal done
        done = 0
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for sandbox in sandboxes:
                nursery.start_soon(repeat, sandbox, began + length)
        return done / (time.perf_counter() - began)

    try:
        await backend.prepare()
        began = time.perf_counter()
        sandboxes.append(await backend.start())
        cold_start = time.perf_counter() - began
        while len(sandboxes) < count:
            sandboxes.append(await backend.start())
        await drive(seconds / 5)
        rate = await drive(seconds)
    finally:
        with trio.CancelScope(shield=True):
            for sandbox in sandboxes:
                await sandbox.aclose()
            await backend.aclose()
    print(json.dumps({"from": continuum.__file__, "cold_start": cold_start, "rate": rate}))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]))
