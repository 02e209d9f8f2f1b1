"""The list of Docker's calls, where it is copied to, and what a filter by path makes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from continuum.sandbox.docker_calls import CALLS, path_filter

ISOLATION = (Path(__file__).parents[2] / "docs" / "how-to" / "isolation.md").read_text()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_the_filter_by_path_is_in_the_documentation_as_it_is_here(method: str) -> None:
    assert f"\n-allow{method}={path_filter(method)}\n" in ISOLATION


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path}")
def test_every_call_is_in_the_documentation_with_what_it_is_for(call: object) -> None:
    shown = re.escape(getattr(call, "why"))  # noqa: B009
    assert re.search(rf"^\| {getattr(call, 'method')} \| `/.*` \| {shown} \|$", ISOLATION, re.MULTILINE)  # noqa: B009
    assert len(re.findall(r"^\| (?:GET|POST|PUT|DELETE) \| ", ISOLATION, re.MULTILINE)) == len(CALLS)


@pytest.mark.parametrize(
    ("request_", "passes"),
    [
        ("GET /_ping", True),
        ("GET /v1.41/containers/json", True),
        ("POST /v1.41/containers/continuum-0123456789ab/attach", True),
        ("POST /v1.41/containers/create", True),
        ("POST /v1.54/containers/create", True),
        ("POST /v1.23/containers/create", False),
        ("POST /v1.100/containers/create", False),
        ("POST /v1.20/containers/continuum-0123456789ab/start", False),
        ("POST /containers/create", False),
        ("POST /v1.41/containers/continuum-worker-1/start", False),
        ("POST /v1.41/containers/continuum-0123456789ab/exec", False),
        ("GET /v1.41/containers/postgres/json", False),
        ("DELETE /v1.41/containers/continuum-postgres-1", False),
        ("GET /v1.41/volumes", True),
        ("GET /v1.41/volumes/data", False),
        ("PUT /v1.41/containers/continuum-0123456789ab/archive", False),
    ],
)
def test_a_filter_by_path_knows_the_workers_calls_and_names(request_: str, passes: bool) -> None:
    method, path = request_.split(" ")
    methods = {call.method for call in CALLS}
    assert bool(method in methods and re.fullmatch(path_filter(method), path)) is passes
