"""How many connections the status server has at once."""

from __future__ import annotations

import resource


def _connections(descriptors: int) -> int:
    """A quarter of the file descriptors that the process may have."""
    return 1024 if descriptors == resource.RLIM_INFINITY else min(1024, descriptors // 4)


CONNECTIONS = _connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""Connections at once; more are closed as they come, so that nobody can use up the worker's file descriptors."""
HELD = CONNECTIONS * 3 // 4
"""Requests that may be held at once until something happens, so that others still get through."""
