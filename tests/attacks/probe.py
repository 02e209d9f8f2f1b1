"""Before anything else: a task that shows that it runs inside a sandbox. Where it does not, no attack is sent."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = r"""
import json, os, socket
def inode(name):
    try:
        return os.stat("/proc/self/ns/" + name).st_ino
    except OSError:
        return None
seen = [place for place in json.loads(payload) if os.path.exists(place)]
root = os.stat("/")
with open("/proc/1/cmdline", "rb") as file:
    first = file.read(4096).decode("utf-8", "replace").split("\0")[:3]
print(json.dumps({
    "hostname": socket.gethostname(),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "pid": os.getpid(),
    "first": first,
    "namespaces": {name: inode(name) for name in ("pid", "net", "mnt", "ipc", "uts")},
    "root": [root.st_dev, root.st_ino],
    "markers": seen,
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
}))
"""

MOST_PROCESSES = 24
"""A sandbox holds its runner, a script and what the unprotected one adds; a host holds many more."""
NAMESPACES = ("pid", "net", "mnt", "ipc", "uts")


class NotASandbox(Exception):
    """What a probe found is no sandbox, or not certainly one: nothing hostile may be sent there."""


@dataclass(frozen=True, slots=True)
class Host:
    """What is true of the machine on which the suite runs, and must not be true of a sandbox.

    markers: files that were made here for the purpose, in places that attacks like to cover or to fill.
    """

    markers: tuple[str, ...]
    namespaces: dict[str, int]
    root: list[int]

    def judge(self, printed: str) -> tuple[str, ...]:
        """The network interfaces of the sandbox where a probe ran. Raises `NotASandbox`."""
        try:
            facts: dict[str, Any] = json.loads(printed)
        except ValueError:
            raise NotASandbox(f"the probe said {printed[:200]!r}") from None
        problems = [
            f"its host name is {facts['hostname']}" if facts["hostname"] != "sandbox" else "",
            f"it sees {facts['processes']} processes" if facts["processes"] > MOST_PROCESSES else "",
            f"its process 1 is {facts['first']}" if "-c" not in facts["first"] else "",
            f"it sees the host's file {facts['markers']}" if facts["markers"] else "",
            "its root directory is the host's" if facts["root"] == self.root else "",
            *(
                f"its {name} namespace is the host's"
                for name, inode in facts["namespaces"].items()
                if inode == self.namespaces[name]
            ),
        ]
        found = [problem for problem in problems if problem]
        if found:
            raise NotASandbox("; ".join(found))
        return tuple(facts["interfaces"])

    @property
    def payload(self) -> str:
        """The probe's, as JSON."""
        return json.dumps(self.markers)


@contextmanager
def this_host() -> Iterator[Host]:
    """What to compare probes with, while the files that mark this host exist."""
    name = f".continuum-attack-{secrets.token_hex(8)}"
    places = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", str(Path.home()), "/")]
    markers = []
    try:
        for place in places:
            if os.access(place, os.W_OK):
                (place / name).write_text("the host's")
                markers.append(str(place / name))
        if not markers:
            raise NotASandbox("no file could be made that marks this host")
        root = os.stat("/")
        yield Host(
            markers=tuple(markers),
            namespaces={each: os.stat(f"/proc/self/ns/{each}").st_ino for each in NAMESPACES},
            root=[root.st_dev, root.st_ino],
        )
    finally:
        for marker in markers:
            Path(marker).unlink(missing_ok=True)


def host_name() -> str:
    """The name of this machine, if it is one that can be told from other words."""
    name = socket.gethostname()
    return name if len(name) > 5 else "this-name-is-too-short-to-look-for"
