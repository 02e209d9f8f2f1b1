"""The network that attacks meet: `tests.support.world`, which answers for every address, and the host at its gateway.

No packet leaves that network: before any attack is sent to a sandbox there, every route of the sandbox leads to the
world's own container. Where that cannot be had, nothing is sent.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from tests.attacks.probe import NotASandbox
from tests.support import docker as lab
from tests.support import world as answering


@dataclass(frozen=True, slots=True)
class World:
    """gateway_port: where something listens on the host, at the gateway's address."""

    inner: answering.World
    gateway: str
    gateway_port: int

    @property
    def network(self) -> str:
        return self.inner.network

    @property
    def facts(self) -> dict[str, Any]:
        """What an attacker may know of it."""
        return {"gateway": self.gateway, "gateway_port": self.gateway_port, "neighbour": self.inner.ipv4}

    async def admit(self, sandbox: str) -> None:
        """Lead every route of a sandbox here. Raises `NotASandbox` when one leads elsewhere."""
        try:
            await trio.to_thread.run_sync(self.inner.lead, sandbox)
        except AssertionError as error:
            raise NotASandbox(f"not every route of {sandbox} leads into the test's own network: {error}") from None


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    """A network of the run's own, removed when the block ends."""
    opened = answering.open_world()
    inner = await trio.to_thread.run_sync(opened.__enter__)
    try:
        gateway = await trio.to_thread.run_sync(_gateway, inner.network)
        with lab.listener(gateway) as port:
            yield World(inner, gateway, port)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(opened.__exit__, None, None, None)


def _gateway(network: str) -> str:
    with lab.api() as client:
        configured: list[dict[str, str]] = client.inspect_network(network)["IPAM"]["Config"]
    return next(each["Gateway"] for each in configured if "." in each.get("Gateway", ""))


def visit(address: str, port: int = 9090, seconds: float = 2.0) -> str:
    """What happens to somebody who connects from the host: a sentence when it is let in, else nothing."""
    give_up = threading.Event()
    timer = threading.Timer(seconds, give_up.set)
    timer.start()
    try:
        while not give_up.is_set():
            try:
                socket.create_connection((address, port), timeout=0.5).close()
                return f"somebody outside connected to {address} port {port}"
            except OSError:
                give_up.wait(0.05)
    finally:
        timer.cancel()
    return ""
