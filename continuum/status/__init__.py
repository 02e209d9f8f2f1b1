"""The status server of one worker: JSON, metrics and a plain first page, on Quart-Trio and Hypercorn."""

from continuum.status.server import StatusServerError, serve_status

__all__ = ["StatusServerError", "serve_status"]
