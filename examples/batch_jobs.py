"""Hundreds of parts of one job, with a progress bar: `python examples/batch_jobs.py`.

Every part has a key of its own. A program that was stopped, or whose machine was, is simply started again: what was done is
found by its key, and only the rest is run. Say `python examples/batch_jobs.py again` for a new job.
"""

import secrets
import sys
from pathlib import Path

import trio

import continuum

PARTS = 150


@continuum.task(max_attempts=2, timeout=30)
def hits(part: int) -> int:
    """How many of 20,000 random points of a square are in its circle. Part 13 is unlucky."""
    import random

    if part == 13:
        raise ValueError("part 13 never works")
    numbers = random.Random(part)
    return sum(numbers.random() ** 2 + numbers.random() ** 2 < 1 for _ in range(20_000))


def job() -> str:
    """The name of the job that is under way in this folder, or of a new one."""
    note = Path(".continuum/batch-job")
    if not note.exists() or sys.argv[1:] == ["again"]:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(secrets.token_hex(4))
    return note.read_text()


async def main() -> None:
    name = job()
    async with continuum.local() as c:
        began = trio.current_time()
        results = await hits.on(c, name="hits").map(
            range(PARTS), progress=True, return_failures=True, idempotency_key=lambda part: f"{name}/{part}"
        )
        seconds = trio.current_time() - began
    done = [result for result in results if isinstance(result, int)]
    print(f"{len(done)} of {PARTS} parts of job {name} in {seconds:.1f} s")
    print(f"pi is about {4 * sum(done) / (20_000 * len(done)):.4f}")
    for failure in results:
        if isinstance(failure, continuum.TaskError):
            print("failed:", failure)


trio.run(main)
