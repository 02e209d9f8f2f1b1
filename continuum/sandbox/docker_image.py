"""The image that sandboxes run: CONTAINER_IMAGE with what a sandbox needs added once per host.

The addition is made in a short-lived container and committed under a tag that names the base image's id and the version
of the addition, so that it is found again, and made anew when either changes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import docker
import structlog
import trio
from docker.utils import parse_repository_tag

from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_owner import ROLE_LABEL, WORKER_LABEL, Owner
from continuum.sandbox.docker_stream import EngineError, EngineNotFound, EngineRefused
from continuum.sandbox.protocol import BackendUnavailable

log = structlog.get_logger(__name__)

REPOSITORY = "continuum-sandbox"
SANDBOX_USER = "sandboxuser"
SANDBOX_UIDS = range(58000, 59024)
"""Users and groups called `SANDBOX_USER`, for each sandbox another: the kernel counts some things by user on the whole host
(inotify instances, pending signals, memory of pipes), and one sandbox could use them up for all. Below 65536, which is as far as
rootless Docker goes; Debian reserves these numbers and gives out none."""
WORK_DIRECTORY = "/sandbox"

PULL_DEADLINE = 900.0
ADDITION_DEADLINE = 120.0
"""Seconds for the addition, an installation of iptables included."""
INSTALL_AGAIN_AFTER = dt.timedelta(hours=1)
"""How long an image that could not be given iptables is taken as it is."""
_PROGRESS_EVERY = 5.0

IPTABLES_LABEL = "continuum.iptables"
"""On every image that was made here."""
IPTABLES = ("yes", "no", "untried")
"""Its values: `no` when they could not be installed, `untried` when nobody asked for them."""
_NO_PYTHON = "no python3 of version 3.8 or later"

_ADD = f"""
set -eu
command -v python3 >/dev/null || ln -s "$(command -v python)" /usr/local/bin/python3 2>/dev/null || true
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' || {{ echo '{_NO_PYTHON}'; exit 0; }}
for file in /etc/passwd /etc/group; do
    touch "$file"
    sed -i '/^{SANDBOX_USER}:/d' "$file"
done
id={SANDBOX_UIDS.start}
while [ $id -lt {SANDBOX_UIDS.stop} ]; do
    echo "{SANDBOX_USER}:x:$id:$id::{WORK_DIRECTORY}:/bin/sh" >&3
    echo "{SANDBOX_USER}:x:$id:" >&4
    id=$((id + 1))
done 3>>/etc/passwd 4>>/etc/group
mkdir -p {WORK_DIRECTORY} /tmp /run
# What is mounted there takes over these modes.
chmod 1777 {WORK_DIRECTORY} /tmp
has_iptables() {{ command -v iptables-restore >/dev/null && command -v ip6tables-restore >/dev/null; }}
if ! has_iptables && [ "$1" = install ]; then
    if command -v apt-get >/dev/null; then
        apt-get -o Acquire::Retries=0 -o Acquire::http::Timeout=10 update >&2 &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends iptables >&2
        rm -rf /var/lib/apt/lists/*
    elif command -v apk >/dev/null; then
        apk add --no-cache iptables >&2
    fi || true
fi
if has_iptables; then echo 'iptables: yes'
elif [ "$1" = install ]; then echo 'iptables: no'
else echo 'iptables: untried'; fi
"""


@dataclass(frozen=True, slots=True)
class SandboxImage:
    """An image ready for sandboxes. volumes: where the base image declares writable volumes."""

    tag: str
    has_iptables: bool
    volumes: tuple[str, ...]


async def ensure_image(engine: Engine, owner: Owner, base: str, *, network: str | None) -> SandboxImage:
    """The image to start sandboxes from, found, or pulled and made.

    network: where iptables may be installed from, if the image lacks it; None does not install it.
    Raises `BackendUnavailable`.
    """
    found = await _find(engine, base)
    if found is None:
        found = await _pull(engine, base)
    tag = sandbox_tag(found["Id"])
    image = await _find(engine, tag)
    if image is None or (network is not None and _worth_another_try(image)):
        image = await _add_and_commit(engine, owner, found["Id"], tag, network)
    return SandboxImage(
        tag=tag,
        has_iptables=_iptables(image) == "yes",
        volumes=tuple(image["Config"].get("Volumes") or ()),
    )


def sandbox_tag(base_id: str) -> str:
    """The name of the image that is made of a base image."""
    version = hashlib.sha256(f"{base_id}\n{_ADD}".encode()).hexdigest()[:12]
    return f"{REPOSITORY}:{version}"


def _iptables(image: dict[str, Any]) -> str:
    """A value of `IPTABLES`."""
    return str((image["Config"].get("Labels") or {}).get(IPTABLES_LABEL, "untried"))


def _worth_another_try(image: dict[str, Any]) -> bool:
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(image["Created"])
    return _iptables(image) == "untried" or (_iptables(image) == "no" and age > INSTALL_AGAIN_AFTER)


async def _find(engine: Engine, reference: str) -> dict[str, Any] | None:
    try:
        return await engine.call(lambda api: api.inspect_image(reference))
    except EngineNotFound:
        return None


async def _pull(engine: Engine, reference: str) -> dict[str, Any]:
    log.info("pulling the sandbox image", image=reference)
    abandoned = threading.Event()
    try:
        await engine.call(lambda api: _pull_and_log(api, reference, abandoned), deadline=PULL_DEADLINE)
        found = await _find(engine, reference)
    except EngineError as error:
        raise BackendUnavailable(_how_to_get(reference, str(error))) from error
    finally:
        abandoned.set()
    if found is None:
        raise BackendUnavailable(_how_to_get(reference, "the pull brought no such image"))
    log.info("pulled the sandbox image", image=reference, id=found["Id"])
    return found


def _pull_and_log(api: docker.APIClient, reference: str, abandoned: threading.Event) -> None:
    repository, tag = parse_repository_tag(reference)
    layers: dict[str, str] = {}
    next_report = time.monotonic() + _PROGRESS_EVERY
    for line in api.pull(repository, tag or "latest", stream=True, decode=True):
        if abandoned.is_set():
            return
        if "error" in line:
            raise docker.errors.APIError(line["error"], explanation=line["error"])
        # The first line bears the tag where the others bear a layer's id.
        if "id" in line and not line.get("status", "").startswith("Pulling from"):
            layers[line["id"]] = line.get("status", "")
        if time.monotonic() >= next_report:
            next_report += _PROGRESS_EVERY
            done = sum(status in ("Pull complete", "Already exists") for status in layers.values())
            log.info("pulling the sandbox image", image=reference, layers_done=done, layers=len(layers))


def _how_to_get(reference: str, reason: str) -> str:
    return (
        f"the image {reference} (CONTAINER_IMAGE) is not on this host and could not be pulled ({reason}). "
        "Without a registry, build it from Debian packages: run `make sandbox-image` as root, or "
        "`mmdebstrap --variant=minbase --include=python3,iptables,ca-certificates bookworm root.tar` and "
        f"`docker import root.tar {reference}`; or set CONTAINER_IMAGE to an image that `docker images` lists"
    )


def addition_specification(labels: Mapping[str, str], base_id: str, network: str | None) -> dict[str, Any]:
    """The container, in the words of Docker's API, in which the addition is made."""
    return {
        "Image": base_id,
        "User": "0:0",
        "Entrypoint": [""],  # not the image's own
        "Cmd": ["/bin/sh", "-c", _ADD, "sh", "install" if network else "keep"],
        "WorkingDir": "/",
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {"NetworkMode": network or "none", "LogConfig": {"Type": "none"}},
    }


def addition_changes(iptables: str) -> list[str]:
    """What the image does not take over from the container in which it was made. iptables: as in `IPTABLES`."""
    return [
        f"LABEL {IPTABLES_LABEL}={iptables}",
        # Otherwise inherited from this container: a container of the image is nobody's unless it says so.
        f'LABEL {WORKER_LABEL}="" {ROLE_LABEL}=""',
        'CMD ["python3"]',
    ]


async def _add_and_commit(engine: Engine, owner: Owner, base_id: str, tag: str, network: str | None) -> dict[str, Any]:
    """Make the image, whatever other workers do at the same time: the first to finish gives it the tag."""
    log.info("preparing the sandbox image, once on this host", image=tag)
    name = f"continuum-image-{secrets.token_hex(6)}"
    specification = addition_specification(owner.labels("image"), base_id, network)
    try:
        with trio.fail_after(ADDITION_DEADLINE):
            await engine.create(name, specification)
            async with await engine.attach(name) as stream:
                await engine.start(name)
                printed = b"".join([piece async for piece in stream]).decode(errors="replace")
            _, found, iptables = printed.strip().rpartition("iptables: ")
            if not found:
                reason = printed.strip() or stream.diagnosis or "no /bin/sh"
                raise BackendUnavailable(f"CONTAINER_IMAGE cannot be used for sandboxes: {reason}")
            return await _commit(engine, name, tag, iptables)
    except trio.TooSlowError:
        raise EngineError(f"the sandbox image was not prepared within {ADDITION_DEADLINE:g} s") from None
    except EngineRefused as error:
        raise BackendUnavailable(f"the sandbox image could not be prepared: {error}") from error
    finally:
        await engine.remove(name)


async def _commit(engine: Engine, container: str, tag: str, iptables: str) -> dict[str, Any]:
    current = await _find(engine, tag)
    if current is not None and _iptables(current) == "yes":
        return current
    repository, _, version = tag.partition(":")
    changes = addition_changes(iptables)
    # Named as it is made: a call that names any image would be one more for `continuum socket-proxy` to judge.
    await engine.call(lambda api: api.commit(container, repository, version, changes=changes))
    if current is not None:
        with suppress(EngineRefused):  # a sandbox still runs it
            await engine.call(lambda api: api.remove_image(current["Id"], noprune=True))
    return await engine.call(lambda api: api.inspect_image(tag))
