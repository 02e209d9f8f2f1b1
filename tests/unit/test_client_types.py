"""What a type checker knows of the client. Nothing here runs: mypy holds each `assert_type` against what is declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_type

import continuum


@dataclass
class Price:
    total: float


@continuum.task
def bare(x: int, *, y: float = 1.0) -> str:
    return str(x * y)


@continuum.task(timeout=5.0, requirements="six==1.17.0")
def with_options(x: int) -> list[Price]:
    return [Price(x)]


def doubled(x: int) -> int:
    return 2 * x


async def on_trio(c: continuum.Client) -> None:
    assert_type(await c.run("pass"), Any)
    assert_type(await c.run("pass", {"a": 1}, returns=int, timeout=3, seconds=5, cancel_on_exit=False), int)
    assert_type(await c.run("pass", returns=list[Price]), list[Price])
    assert_type(await c.run("pass", returns=int | None), Any)  # no type, but a union of them, to mypy
    assert_type(await c.result(17, returns=Price), Price)
    assert_type(c.map("pass", ["a"], returns=Price), continuum.Results[str, Price])
    assert_type(await c.map("pass", ["a"], returns=Price), list[Price])
    failing = c.map("pass", ["a"], returns=Price, return_failures=True)
    assert_type(failing, continuum.Results[str, Price | continuum.TaskError])
    async for payload, price in c.map("pass", [1], returns=Price, idempotency_key=lambda n: f"{n + 1}").as_completed():
        assert_type((payload, price), tuple[int, Price])
    remote = c.task(doubled)
    assert_type(await remote(1), int)
    assert_type(await remote.submit(1), int)
    assert_type(await remote.result(17), int)
    assert_type(await remote.map([1, 2]), list[int])
    assert_type(await c.task(priority=1)(doubled)(x=1), int)
    assert_type(await bare.on(c)(1, y=2), str)
    assert_type(await with_options.on(c, tenant="acme")(1), list[Price])
    local: Callable[[int], int] = remote.local
    assert_type(local(1), int)


def blocking(c: continuum.BlockingClient) -> None:
    assert_type(c.run("pass", returns=Price), Price)
    assert_type(c.result(17, returns=int), int)
    assert_type(list(c.map("pass", [1], returns=Price)), list[Price])
    assert_type(c.task(doubled)(1), int)
    assert_type(bare.on(c)(1, y=2), str)
    assert_type(list(bare.on(c).map([1], return_failures=True)), list[str | continuum.TaskError])


def wrong(c: continuum.BlockingClient) -> None:
    c.run("pass", priorty=1)  # type: ignore[call-overload]
    c.run("pass", priority="high")  # type: ignore[call-overload]
    c.task(doubled)("one")  # type: ignore[arg-type]
    bare.on(c)()  # type: ignore[call-arg]
    c.map("pass", [1], idempotency_key="the same for all")  # type: ignore[call-overload]


def test_a_function_without_a_client_is_still_one() -> None:
    assert_type(bare(3), str)
    assert bare(3) == "3.0"
    assert with_options(1) == [Price(1)]
