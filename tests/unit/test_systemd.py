"""The units in deploy/systemd, as systemd itself understands them, and held against what the worker does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from continuum.cli import errors
from continuum.config import Settings
from continuum.nursery.supervisor import WRITE_DEADLINE
from continuum.sandbox.pool import REMOVE_DEADLINE
from tests.conftest import require

FOLDER = Path(__file__).parents[2] / "deploy/systemd"
SERVICES = ["continuum.service", "continuum-socket-proxy.service"]


def systemd(program: str, *arguments: str) -> str:
    require("systemd", shutil.which(program) is not None, f"no {program}: install Debian's systemd")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def directives(name: str) -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in (FOLDER / name).read_text().splitlines():
        if setting := re.match(r"(\w+)=(.*)$", line):
            found[setting[1]].append(setting[2])
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that is there."""
    for name in SERVICES:
        (tmp_path / name).write_text((FOLDER / name).read_text().replace("/opt/continuum/bin/continuum", "/bin/true"))
    return tmp_path


@pytest.mark.parametrize("bubblewrap", [False, True])
def test_systemd_understands_the_units_and_finds_little_exposed(units: Path, bubblewrap: bool) -> None:
    if bubblewrap:
        (units / "continuum.service.d").mkdir()
        shutil.copy(FOLDER / "bubblewrap.conf", units / "continuum.service.d")
    paths = [str(units / name) for name in SERVICES]
    assert systemd("systemd-analyze", "verify", "--man=no", *paths) == ""
    systemd(
        "systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={35 if bubblewrap else 20}", *paths
    )


def test_the_users_and_the_folder_of_settings_are_what_the_units_name(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("docker:x:900:\n")
    systemd("systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "continuum.sysusers"))
    users = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert users == {name for service in SERVICES for name in directives(service)["User"]}
    assert re.search(r"^docker:x:900:continuum-socket$", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    tmpfiles = (FOLDER / "continuum.tmpfiles").read_text()
    for service in SERVICES:
        (named,) = [value for value in directives(service)["Environment"] if value.startswith("CONTINUUM_ENV_FILE=")]
        assert re.search(rf"^z {named.split('=')[1]} +0640 root continuum$", tmpfiles, re.MULTILINE)


def test_a_stop_lasts_as_long_as_the_worker_may_need_and_reaches_no_sandbox_before() -> None:
    unit = directives("continuum.service")
    grace = Settings.model_fields["shutdown_grace"].default
    assert float(unit["TimeoutStopSec"][0]) >= grace + max(WRITE_DEADLINE, grace) + REMOVE_DEADLINE
    assert unit["KillMode"] == ["mixed"]
    assert unit["RestartPreventExitStatus"] == [str(errors.USAGE)]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_worker_and_proxy_meet_at_one_socket() -> None:
    worker, proxy = directives("continuum.service"), directives("continuum-socket-proxy.service")
    assert "DOCKER_HOST=unix:///run/continuum/docker.sock" in worker["Environment"]
    assert proxy["ExecStart"][0].endswith("socket-proxy --listen /run/continuum/docker.sock")
    assert proxy["RuntimeDirectory"] == ["continuum"]
    assert proxy["Group"] == worker["Group"]
    assert "SupplementaryGroups" not in worker, "the worker itself has no right to Docker's socket"
