"""Every command of `continuum` with its arguments and options, and the exit codes, from the code of the command line."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperGroup

from continuum.cli import app, errors
from docs.generators.source import cell


def generate() -> str:
    """A heading for each command, groups of commands included."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return "\n".join(_commands(root, typer.Context(root, info_name="continuum")))


def generate_exit_codes() -> str:
    """The table of continuum/cli/errors.py."""
    rows = re.findall(r"^\| *(\d+) *\| *(.+?) *\|$", errors.__doc__ or "", re.MULTILINE)
    return "\n".join(["| code | meaning |", "|---|---|", *(f"| {code} | {meaning} |" for code, meaning in rows), ""])


def _commands(group: TyperGroup, context: Any) -> list[str]:
    parts = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        below = typer.Context(command, info_name=name, parent=context)
        if isinstance(command, TyperGroup):
            parts += _commands(command, below)
        else:
            parts.append(_command(command, below))
    return parts


def _command(command: Any, context: Any) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## `{context.command_path}`\n", f"{command.help or ''}\n", f"```text\n{usage}\n```\n"]
    rows = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    rows = [(names, meaning) for names, meaning in rows if names != "--help"]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| `{cell(names)}` | {cell(meaning)} |" for names, meaning in rows]
    return "\n".join([*lines, ""])
