"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from continuum.config import Settings


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Neither the environment nor a developer's `.env` changes what the tests' settings are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        patch.setitem(Settings.model_config, "env_file", None)
        yield


WITH_WORKERS = (
    "e2e/",
    *(f"sandbox/test_docker_{name}.py" for name in ("layers", "owner", "proxy", "requirements", "sweep")),
)
"""Tests of workers, and of what dead ones leave: a worker removes that from the whole host."""
WITH_SANDBOXES = ("attacks/", "sandbox/")


def pytest_itemcollected(item: pytest.Item) -> None:
    """With several processes (`pytest -n`), one of them has all tests of either kind; the others run beside them."""
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    for group, places in (("workers", WITH_WORKERS), ("sandboxes", WITH_SANDBOXES)):
        if path.startswith(places):
            item.add_marker(pytest.mark.xdist_group(group))
            break


CANNOT_EXIST_IN_CI = {
    "cockroach": "no registry that CI reaches carries a CockroachDB binary; the GitHub workflow downloads one",
    "cockroach-image": "no registry that CI reaches carries CockroachDB's image; the GitHub workflow pulls it",
}
"""What may be missing even where everything else must be there, each with its reason."""


def require(name: str, available: bool, reason: str) -> None:
    """Skip the test when something that it needs is not there; fail instead in CI (CI=true), and wherever
    CONTINUUM_REQUIRE, a list of names separated by commas, holds `name` or `all`."""
    if available:
        return
    demanded = {one.strip() for one in os.environ.get("CONTINUUM_REQUIRE", "").split(",")}
    in_ci = os.environ.get("CI", "").lower() == "true" and name not in CANNOT_EXIST_IN_CI
    if in_ci or demanded & {name, "all"}:
        pytest.fail(f"{name} is required here: {reason}")
    pytest.skip(f"{name}: {CANNOT_EXIST_IN_CI.get(name, reason)}")
