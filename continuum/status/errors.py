"""What can go wrong with the status server; apart, so that the command line need not import the server to say it."""

from __future__ import annotations


class StatusServerError(Exception):
    """The status server cannot listen where API_HOST and API_PORT say; the message says why."""
