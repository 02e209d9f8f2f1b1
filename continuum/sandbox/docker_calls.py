"""The calls of Docker's API that a worker makes. The list is here alone.

`continuum socket-proxy` lets through what is on it, once `docker_judge` has looked into it. A filter by method and path
(docs/how-to/isolation.md) can have the list, not the look.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from continuum.sandbox.docker_comparison import Refused
from continuum.sandbox.docker_judge import ADDITION, CONTAINER, IMAGE_ID, LAYER, Judge, Request

VERSION = r"/v1\.(?:4[1-9]|[5-9][0-9])"
"""What a path begins with. In older versions of the API the same body means less, and a list tells more."""


@dataclass(frozen=True, slots=True)
class Call:
    """One of the worker's calls. path: a regular expression for all of it; parameters: those of its query that may be
    given; judge: the method of `Judge` that looks into it, and returns the body to send. streams: the connection then
    carries a container's streams. uploads: the body is no JSON, and of what was sent only the digest is kept."""

    method: str
    path: str
    why: str
    parameters: frozenset[str] = frozenset()
    judge: Callable[[Judge, Request, str], Awaitable[Any]] | None = None
    versioned: bool = True
    streams: bool = False
    uploads: bool = False


CALLS = (
    Call("GET", "/_ping", "whether the daemon is there", versioned=False),
    Call("GET", "/version", "which version of the API it speaks", versioned=False),
    Call("GET", "/info", "which runtimes it has, and what it can limit"),
    Call("GET", "/networks", "find the sandboxes' network", frozenset({"filters"}), Judge.list_networks),
    Call("POST", "/networks/create", "make it", judge=Judge.make_network),
    Call("GET", "/images/(.+)/json", "find CONTAINER_IMAGE and the image made of it", judge=Judge.inspect_image),
    Call("POST", "/images/create", "pull CONTAINER_IMAGE", frozenset({"fromImage", "tag"}), Judge.pull_image),
    Call("POST", "/commit", "make the sandbox image", frozenset({"container", "pause", "changes", "repo", "tag"}), Judge.commit),
    Call(
        "DELETE", f"/images/{IMAGE_ID}", "remove one that another replaced",
        frozenset({"force", "noprune"}), Judge.remove_image,
    ),
    Call("GET", "/containers/json", "find what dead workers left",
         frozenset({"filters", "limit", "all", "size", "trunc_cmd"}), Judge.list_containers),
    Call("POST", "/containers/create", "make a sandbox, or a helper for one", frozenset({"name"}), Judge.make_container),
    Call("POST", f"/containers/{CONTAINER}/attach", "talk with its runner",
         frozenset({"stream", "stdin", "stdout", "stderr"}), streams=True),
    Call("POST", f"/containers/{CONTAINER}/start", "start it"),
    Call("GET", f"/containers/{CONTAINER}/json", "ask why it ended"),
    Call("GET", "/events", "ask whether it ran out of memory", frozenset({"filters", "since", "until"}), Judge.list_events),
    Call("DELETE", f"/containers/{CONTAINER}", "remove it", frozenset({"v", "link", "force"})),
    Call("PUT", f"/containers/({ADDITION})/archive", "put uv into the image that installs requirements",
         frozenset({"path"}), Judge.put_archive, uploads=True),
    Call("GET", "/volumes", "find the layers of requirements", frozenset({"filters"}), Judge.list_volumes),
    Call("POST", "/volumes/create", "make one", judge=Judge.make_volume),
    Call("GET", f"/volumes/({LAYER})", "see that it is still there"),
    Call("DELETE", f"/volumes/({LAYER})", "remove it", frozenset({"force"})),
)  # fmt: skip


async def check(judge: Judge, request: Request) -> tuple[Call, Any]:
    """The call that a request is, and the body to send with it, made anew. Raises `Refused`, and `EngineError` when the
    daemon has to be asked and does not answer."""
    for call in CALLS:
        match = re.fullmatch(call.path, request.path)
        if match is None or call.method != request.method:
            continue
        if unknown := request.query.keys() - call.parameters:
            raise Refused(f"workers give no parameter {min(unknown)} here")
        if repeated := {name for name, values in request.query.items() if len(values) > 1 and name != "changes"}:
            raise Refused(f"workers give the parameter {min(repeated)} once")
        if call.judge is None:
            return call, None
        return call, await call.judge(judge, request, match[1] if match.groups() else "")
    raise Refused("workers make no such call")


def path_filter(method: str) -> str:
    """A regular expression for the paths, version included, of the calls with a method: for filters that see no more."""
    plain = [call.path for call in CALLS if call.method == method and not call.versioned]
    others = "|".join(call.path for call in CALLS if call.method == method and call.versioned)
    # In one group: there are filters that put ^ and $ around what they are given.
    return f"(?:{'|'.join([*plain, f'{VERSION}(?:{others})'])})"
