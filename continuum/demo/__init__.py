"""`continuum demo`: from nothing to a finished run, every outcome checked, without a question and without a network."""

from continuum.demo.run import run_demo

__all__ = ["run_demo"]
