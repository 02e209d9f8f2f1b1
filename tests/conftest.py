"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from continuum.config import NAMED_FILE, Settings


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Neither the environment nor a developer's `.env` changes what the tests' settings are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        patch.delenv(NAMED_FILE, raising=False)
        patch.setitem(Settings.model_config, "env_file", None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Processes that tests start inherit what is ignored here: Ctrl-C by shells in the background, hangups by nohup."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


WITH_WORKERS = (
    *(
        f"tests/e2e/test_{name}.py"
        for name in (
            "cli_watching",
            "client_run",
            "compose",
            "demo",
            "failures",
            "image",
            "socket_proxy",
            "tasks",
            "webhooks",
        )
    ),
    *(f"tests/sandbox/test_docker_{name}.py" for name in ("layers", "owner", "proxy", "requirements", "sweep")),
)
"""Tests of workers with Docker, and of what dead ones leave: a worker removes that from the whole host."""
WITH_SANDBOXES = ("tests/attacks/", "tests/sandbox/")


class ByWhatTheyDisturb(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    """With several processes (`pytest -n 2`), one of them has all tests that start workers with Docker, one all others of
    sandboxes; all other tests go file by file to whichever process is idle.

    (xdist's own `--dist loadgroup` needs names of tests that can be changed, which pytest 9 has put an end to.)
    """

    def _split_scope(self, nodeid: str) -> str:
        for places in (WITH_WORKERS, WITH_SANDBOXES):
            if nodeid.startswith(places):
                return places[0]
        return nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByWhatTheyDisturb:
    return ByWhatTheyDisturb(config, log)


CANNOT_EXIST_IN_CI = {
    "kubectl": "no package has one that knows components; the GitHub workflow's machines do",
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
