"""Webhooks for real: workers with bubblewrap, and the documentation's receiver in a container, which is another machine as far as
the network goes. An allowlist opens it, since its address is private."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import trio

from continuum.model import NewTask
from continuum.webhook import format_secret
from tests.support.docker import IMAGE, api, new_worker, require_docker
from tests.support.documents import ROOT, blocks_of
from tests.support.installation import Installation
from tests.support.workers import start_worker

SECRET = format_secret(b"e" * 32)
OTHER = format_secret(b"o" * 32)
PORT = 8443
(DOCUMENTED,) = (block.text for block in blocks_of(ROOT / "docs/how-to/webhooks.md") if block.argument == "receiver.py")
SLOW_AT_FIRST = f"""
scope = {{"__name__": "receiver"}}
exec({DOCUMENTED!r}, scope)
asked = []

class Receiver(scope["Receiver"]):
    def do_POST(self):
        asked.append(self.headers["webhook-id"])
        print("asked", *asked, flush=True)
        if len(asked) == 1:
            scope["time"].sleep(600)
        super().do_POST()

scope["ThreadingHTTPServer"](("", {PORT}), Receiver).serve_forever()
"""
"""The receiver, which leaves its first request unanswered."""


@dataclass(frozen=True)
class RunningReceiver:
    url: str
    name: str

    @property
    def lines(self) -> list[str]:
        """What it has printed."""
        with api() as client:
            return str(client.logs(self.name, stderr=False).decode()).splitlines()

    async def said(self, line: str, seconds: float = 30) -> None:
        with trio.move_on_after(seconds):
            while line not in self.lines:
                await trio.sleep(0.1)
            return
        raise AssertionError(f"no {line!r} among {self.lines}")


@contextmanager
def receiver(program: str) -> Iterator[RunningReceiver]:
    name = f"{new_worker()}-{secrets.token_hex(3)}"
    with api() as client:
        client.create_container(
            IMAGE, ["python", "-c", program, str(PORT)], name=name, environment={"WEBHOOK_SECRET": SECRET}
        )
        try:
            client.start(name)
            networks: dict[str, Any] = client.inspect_container(name)["NetworkSettings"]["Networks"]
            (address,) = (network["IPAddress"] for network in networks.values())
            yield RunningReceiver(f"http://{address}:{PORT}/done?token=hush", name)
        finally:
            client.remove_container(name, force=True)


@pytest.fixture(scope="module")
def _docker() -> None:
    require_docker()


def variables(light: Installation, url: str) -> dict[str, str]:
    """A worker's, who may reach the receiver; its newest secret is one that the receiver does not have yet."""
    allowed = url.removeprefix("http://").partition("/")[0]
    return light.environment | {
        "EGRESS": "allowlist",
        "EGRESS_ALLOW": allowed,
        "WEBHOOK_SECRET": f"{OTHER},{SECRET}",
        "SLOTS": "1",
    }


async def delivered(light: Installation, task_id: int, seconds: float = 30) -> int:
    """Wait until nothing is due for a task any more; how many tries it took."""

    def look() -> tuple[object, int]:
        with psycopg.connect(light.url) as connection:
            found = connection.execute(
                "SELECT webhook_due, webhook_tries FROM tasks WHERE id = %s", [task_id]
            ).fetchone()
            assert found is not None
            return found[0], found[1]

    with trio.fail_after(seconds):
        while True:
            due, tries = await trio.to_thread.run_sync(look)
            if due is None:
                return tries
            await trio.sleep(0.05)


@pytest.mark.usefixtures("_docker")
async def test_the_documented_receiver_verifies_what_a_worker_tells_it(light: Installation) -> None:
    with receiver(DOCUMENTED) as receiving:
        async with start_worker(variables(light, receiving.url)) as worker:
            good, bad = await light.database.submit(
                [
                    NewTask(code="print('out')", payload='"in"', webhook=receiving.url, tenant="acme"),
                    NewTask(code="1 / 0", max_attempts=1, webhook=receiving.url),
                ]
            )
            await receiving.said(f"task.completed {good}")
            await receiving.said(f"task.failed {bad}")
            assert await delivered(light, good) == await delivered(light, bad) == 1
            (private,) = await light.database.submit(
                [NewTask(code="pass", webhook="https://127.0.0.1:1/latest?token=hush")]
            )
            await worker.until_said("a webhook was not delivered", seconds=30)
            assert "loopback" in worker.output
            assert "hush" not in worker.output
            assert SECRET not in worker.output
        assert len(receiving.lines) == 2, private


@pytest.mark.usefixtures("_docker")
async def test_what_a_killed_worker_did_not_deliver_another_does(light: Installation) -> None:
    with receiver(SLOW_AT_FIRST) as receiving:
        environment = variables(light, receiving.url)
        async with start_worker(environment) as killed:
            (task_id,) = await light.database.submit([NewTask(code="pass", webhook=receiving.url)])
            await receiving.said(f"asked task_{task_id}_1")
            killed.process.kill()
            await killed.wait()
        # Its lease would end by itself, in a minute.
        with psycopg.connect(light.url) as connection:
            connection.execute("UPDATE tasks SET webhook_due = now() WHERE webhook_due IS NOT NULL")
        async with start_worker(environment):
            await receiving.said(f"asked task_{task_id}_1 task_{task_id}_1")
            await receiving.said(f"task.completed {task_id}")
            assert await delivered(light, task_id) == 2
