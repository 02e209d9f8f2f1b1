"""What all tests share."""

from __future__ import annotations

import os

import pytest


def require(name: str, available: bool, reason: str) -> None:
    """Skip the test when something that it needs is not there; fail instead in CI (CI=true), and wherever
    CONTINUUM_REQUIRE, a list of names separated by commas, holds `name` or `all`."""
    if available:
        return
    demanded = {one.strip() for one in os.environ.get("CONTINUUM_REQUIRE", "").split(",")}
    if os.environ.get("CI", "").lower() == "true" or demanded & {name, "all"}:
        pytest.fail(f"{name} is required here: {reason}")
    pytest.skip(f"{name}: {reason}")
