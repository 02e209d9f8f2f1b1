"""Reading a request's body, and taking it apart where that holds nobody up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from quart import request

from continuum.status.api_errors import Refusal
from continuum.status.api_operations import JSON
from continuum.status.bodies import LazyBody

IN_A_THREAD = 64 * 1024
"""Bytes from which a body is taken apart in a thread."""
BODY_TIMEOUT = 120
"""Seconds for a body of the API to arrive: some are large."""

T = TypeVar("T")

_threads = trio.CapacityLimiter(1)  # a second one would have to wait for the interpreter anyway


async def read_body(largest: int, parse: Callable[[bytes], T]) -> T:
    """The body of the current request, of `largest` bytes at most, as `parse` makes it. Raises `Refusal`."""
    if request.mimetype != JSON or request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise Refusal(415, "wrong content type", f"send JSON in UTF-8, and say so: `Content-Type: {JSON}`")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "wrong content encoding", "send the body as it is, without Content-Encoding")
    body = request.body
    assert isinstance(body, LazyBody)
    body.allow(largest)
    request.body_timeout = BODY_TIMEOUT
    data: bytes = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    if len(data) <= IN_A_THREAD:
        return parse(data)
    return await trio.to_thread.run_sync(parse, data, limiter=_threads)
