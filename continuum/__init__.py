"""Continuum: run Python code that you do not trust, from a SQL table, without losing a task."""
