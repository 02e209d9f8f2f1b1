"""What bubblewrap's backend does when its host has no more to give."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from typing import Any

import pytest

from continuum.sandbox.bubblewrap import BubblewrapBackend
from continuum.sandbox.protocol import BackendUnavailable
from tests.support import docker as lab


@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        (socket, "socketpair", errno.EMFILE),
        (tempfile, "TemporaryFile", errno.ENOSPC),
        (os, "memfd_create", errno.EMFILE),
        (os, "lseek", errno.EIO),
    ],
)
async def test_a_host_without_room_for_another_sandbox_is_a_backend_that_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, code: int
) -> None:
    backend = BubblewrapBackend(lab.settings(), "test")
    await backend.check()
    before = set(os.listdir("/proc/self/fd"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken, pytest.raises(BackendUnavailable, match=os.strerror(code)):
        broken.setattr(module, name, refuse)
        await backend.start()
    assert set(os.listdir("/proc/self/fd")) == before, "and no descriptor is left open"
