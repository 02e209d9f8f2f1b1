"""Every code block of the documentation is of a kind that is run or parsed, and parses. tests/e2e/test_documents.py runs them."""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from dotenv import dotenv_values
from typer.core import TyperGroup

from continuum.cli import app
from continuum.config import Settings
from tests.support.documents import (
    CANNOT_RUN,
    ONLY_SHOWN,
    PARSED,
    ROOT,
    RUN,
    WORDS,
    Block,
    blocks_of,
    commands_of,
    pages,
)

BLOCKS = [block for page in pages() for block in blocks_of(page)]
OF_OTHERS = ("OTEL_", "CONTINUUM_", "CHAOS_", "DOCKER_", "SSL_")
"""Variables in dotenv blocks that are not settings of a worker."""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def named(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_a_block_says_what_it_is_and_how_it_is_treated(block: Block) -> None:
    assert block.language in RUN | PARSED | ONLY_SHOWN, f"{block.place}: say what is in it: ```text, ```sh, ..."
    assert block.word in WORDS | {""}, f"{block.place}: {block.word!r} is not one of {sorted(WORDS)} (CONTRIBUTING.md)"
    if block.word == "cannot":
        assert block.argument in CANNOT_RUN, f"{block.place}: say why by one of {sorted(CANNOT_RUN)}"
    if block.word in ("file", "exit"):
        assert block.argument, f"{block.place}: `{block.word}` of what?"


def test_every_word_and_every_reason_for_not_running_a_block_is_used() -> None:
    assert {block.word for block in BLOCKS} == WORDS | {""}
    assert {block.argument for block in BLOCKS if block.word == "cannot"} == set(CANNOT_RUN)


@pytest.mark.parametrize("block", of("python"), ids=named)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec", flags=0x2000)  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@pytest.mark.parametrize("block", of("sh", "console"), ids=named)
def test_shell_parses_and_names_only_commands_options_and_targets_that_exist(block: Block) -> None:
    script = commands_of(block)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True, timeout=10)
    for command in continuum_commands(script):
        understand(command)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\s*make ([a-z][\w-]*)", script, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{block.place}: make {target}"


@pytest.mark.parametrize("block", of(*PARSED), ids=named)
def test_data_parses(block: Block) -> None:
    match block.language:
        case "json":
            json.loads(block.text)
        case "yaml":
            assert list(yaml.safe_load_all(block.text))
        case "toml":
            tomllib.loads(block.text)
        case "ini":
            parser = configparser.ConfigParser(strict=False, interpolation=None)
            parser.read_string(block.text)
        case "dotenv":
            known = {name.upper() for name in Settings.model_fields}
            for name in dotenv_values(stream=io.StringIO(block.text)):
                assert name in known or name.startswith(OF_OTHERS), f"{block.place}: no setting is called {name}"


def continuum_commands(script: str) -> list[list[str]]:
    """The arguments of each `continuum ...` in a script; what the shell would put in is a 1."""
    found = []
    script = re.sub(r"\\\n", " ", script)
    for line in script.splitlines():
        plain = re.sub(r"\$\([^()]*\)|\$\{?\w+\}?", "1", line)
        words = shlex.shlex(plain, posix=True, punctuation_chars="|&;<>()")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= set("|&;<>()"):
                command.append(word)
                continue
            while command and re.match(r"^\w+=", command[0]):
                command.pop(0)
            if command[:1] == ["continuum"]:
                found.append(command[1:])
            command = []
    return found


def understand(arguments: list[str]) -> None:
    """Have the command line parse arguments as it would, and do nothing. Raises what it raises on wrong usage."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="continuum")
    while isinstance(command, TyperGroup) and arguments and not arguments[0].startswith("-"):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, context = found, typer.Context(found, parent=context, info_name=name)
    with contextlib.suppress(typer.Exit):  # --help, --version
        command.make_context(context.info_name, list(arguments), context.parent)


@pytest.mark.parametrize(
    "command", ["continuum submi x.py", "A=1 continuum submit --paylod 1 x.py", "x | continuum cancel"]
)
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    (arguments,) = continuum_commands(command)
    with pytest.raises(type(typer.BadParameter("")).__bases__):
        understand(arguments)


@pytest.mark.parametrize("text", ["```sh\nls\n", "a\n~~~~python\n1\n~~~\n"])
def test_a_block_that_is_never_closed_is_noticed(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="never closed"):
        blocks_of(page)


def test_a_comment_counts_for_the_next_block_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- block: exit 3 -->\n\n```sh\nfalse\n```\n```sh\ntrue\n```\n"
        "1. item\n\n   <!-- block: file a.py -->\n   ```python title=a.py\n   if 1:\n       pass\n   ```\n"
        "<!-- block: task -->\nwords between\n```python\n```\n"
    )
    assert [(block.line, block.language, block.word, block.argument) for block in blocks_of(page)] == [
        (3, "sh", "exit", "3"),
        (6, "sh", "", ""),
        (12, "python", "file", "a.py"),
        (18, "python", "", ""),
    ]
    assert blocks_of(page)[2].text == "if 1:\n    pass\n"
