"""Submitting tasks and reading their outcomes: `Client` on Trio, `BlockingClient` for everybody else."""

from continuum.client.blocking import BlockingClient
from continuum.client.trio_client import Client, TaskNotFound, WaitTimeout, connect, new_task

__all__ = ["BlockingClient", "Client", "TaskNotFound", "WaitTimeout", "connect", "new_task"]
