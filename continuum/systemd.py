"""What systemd is told by a service of Type=notify; nothing where it does not ask (NOTIFY_SOCKET)."""

from __future__ import annotations

import os
import socket
import time

PATIENCE = 0.5
"""Seconds for a supervisor that has ten messages waiting already to take one of them."""


def tell_ready() -> None:
    """Started, or done with a reload."""
    _tell("READY=1")


def tell_reloading() -> None:
    """A reload has begun; `tell_ready` ends it."""
    _tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def tell_stopping() -> None:
    _tell("STOPPING=1")


def tell_status(text: str) -> None:
    """What `systemctl status` shows, in one line."""
    _tell(f"STATUS={' '.join(text.split())}")


def tell_alive() -> None:
    """The event loop turns: what WatchdogSec= wants to hear, in time."""
    _tell("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what systemd allows; None where it asks for none."""
    asked = os.environ.get("WATCHDOG_USEC", "")
    if not asked.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return max(0.1, int(asked) / 2e6)


def _tell(message: str) -> None:
    """Never fails: a service is not worse for a supervisor that does not listen."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(PATIENCE)
            sender.sendto(message.encode(), address)
    except OSError:
        pass
