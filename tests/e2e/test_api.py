"""The HTTP API as its users see it: a real worker, and nothing but HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from tests.support.installation import Installation
from tests.support.workers import WorkerProcess, start_worker

TOKEN = "open sesame"


@asynccontextmanager
async def worker(installed: Installation) -> AsyncIterator[tuple[WorkerProcess, httpx.AsyncClient]]:
    """A worker, and a client of its API."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        start_worker(installed.environment | {"API_TOKEN": TOKEN, "SLOTS": "2"}) as process,
        httpx.AsyncClient(base_url=process.address, headers=headers, timeout=60) as client,
    ):
        yield process, client


async def test_a_producer_needs_nothing_but_http(light: Installation) -> None:
    async with worker(light) as (process, client):
        # stored once, run twice, each with a payload of its own
        script = "import json\nprint(json.loads(payload)['n'] * 2)\n"
        code_id = (await client.post("/codes", json={"code": script})).json()["id"]
        tasks = [{"code_id": code_id, "payload": {"n": number}, "name": f"double {number}"} for number in (21, 4)]
        answer = await client.post("/tasks", json={"tasks": tasks})
        assert answer.status_code == 201, answer.text
        for task, output in zip(answer.json()["tasks"], ("42\n", "8\n"), strict=True):
            ended = await client.get(f"/tasks/{task['id_str']}/wait", params={"seconds": 30})
            assert (ended.status_code, ended.json()["output"]) == (200, output)

        # followed while it runs, and cancelled
        answer = await client.post("/tasks", json={"code": "import time\nprint(1, flush=True)\ntime.sleep(60)\n"})
        running = answer.headers["Location"]
        events = []
        async with client.stream("GET", f"{running}/logs") as stream:
            async for line in stream.aiter_lines():
                events.append(json.loads(line))
                if events == [{"type": "output", "attempt": 1, "text": "1\n"}]:
                    assert (await client.post(f"{running}/cancel")).json()["outcome"] == "requested"
        assert (events[-1]["type"], events[-1]["status"]) == ("end", "cancelled")

        # found, told of, and tried again
        answer = await client.post(
            "/tasks", json={"code": "import sys; sys.exit(3)", "max_attempts": 1, "name": "fails"}
        )
        await client.get(f"{answer.headers['Location']}/wait")
        (failed,) = (await client.get("/tasks", params={"status": "failed", "text": "FAILS"})).json()["tasks"]
        assert (await client.get(f"/tasks/{failed['id']}")).json()["history"][0]["exit_code"] == 3
        copy = await client.post(f"/tasks/{failed['id']}/retry")
        assert (copy.status_code, copy.json()["retry_of"]) == (201, failed["id"])
        assert (await client.post(f"/tasks/{failed['id']}/retry")).json()["id"] == copy.json()["id"]
        ended = await client.get(f"{copy.headers['Location']}/wait")
        assert (ended.json()["status"], ended.json()["retry_of"]) == ("failed", failed["id"])
        assert (await client.post(f"{copy.headers['Location']}/cancel")).json()["outcome"] == "finished"

        # a key that comes twice
        once = [await client.post("/tasks", json={"code": "1"}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert len({one.json()["id"] for one in once}) == 1

        # what is not there
        unknown = {"code_id": "6f1d2a9c-0a52-5d7e-9a53-0f3d51c0de00"}
        assert (await client.post("/tasks", json=unknown)).status_code == 409
        assert (await client.get("/tasks/999999")).status_code == 404

        # a large payload arrives, byte for byte
        rows = [{"id": number, "text": "ü\n\\"} for number in range(300_000)]
        large = {"code": "import json; print(len(json.loads(payload)))", "payload": rows}
        body = json.dumps(large, ensure_ascii=False).encode()
        assert len(body) > 8_000_000
        began = trio.current_time()
        answer = await client.post("/tasks", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 201, answer.text
        assert trio.current_time() - began < 30
        ended = await client.get(f"/tasks/{answer.json()['id']}/wait", params={"seconds": 60})
        assert ended.json()["output"] == "300000\n"
        assert ended.json()["payload"] == rows

        # who waits is answered when the worker stops
        answer = await client.post("/tasks", json={"code": "x", "run_at": "9000-01-01T00:00:00Z"})
        statuses: list[int] = []

        async def wait() -> None:
            statuses.append(
                (await client.get(f"/tasks/{answer.json()['id']}/wait", params={"seconds": 60})).status_code
            )

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.5)
                process.process.terminate()
        assert statuses == [204]
