"""The fenced code blocks of README, CONTRIBUTING and docs/, and what is to be done with each.

Python, shell, console and SQL blocks are run, the rest is parsed. An HTML comment on the line before a block, which no reader
sees, says so where a block is to be treated in another way; CONTRIBUTING.md lists what it may say.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CANNOT_RUN = {
    "ci": "CI itself runs these commands before the tests (.ci/run, .github/workflows/ci.yml)",
    "cluster": "needs a CockroachDB cluster, or several machines; deploy/ and tests/e2e/test_compose.py stand for it",
    "daemon": "changes the machine's own services; what it sets up is in tests/sandbox and in `make services`",
    "docker": "needs images that no registry gives to CI; tests/e2e/test_compose.py runs the compose files where it can",
    "excerpt": "part of a file or program, shown for one thing in it",
    "install": "needs a package index; tests/e2e/test_wheel.py installs the wheel and uses it",
    "kubernetes": "needs a Kubernetes cluster; the manifests are parsed by tests of their own",
    "long": "takes minutes, or ends only with Ctrl-C; its options are checked, and tests of its own run it",
}
"""Why a block is not run. `<!-- block: cannot REASON -->` names one of these, and nothing else keeps a block from being run."""

RUN = {"python", "sh", "console", "sql"}
PARSED = {"json", "yaml", "toml", "dotenv", "ini"}
ONLY_SHOWN = {"text", "promql", "dockerfile"}
"""Languages that nothing here understands."""

WORDS = {"cannot", "commit", "exit", "file", "output", "service", "task"}
"""What a comment before a block may begin with."""

_DIRECTIVE = re.compile(r"^\s*<!-- block: (.+?) -->\s*$")
_FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})(?P<info>.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    language: the info string's first word. word, argument: what the comment before it says, or empty. place: page and line.
    """

    page: Path
    line: int
    language: str
    text: str
    word: str = ""
    argument: str = ""

    @property
    def place(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.word not in ("cannot", "output") and (self.language in RUN or self.word == "file")


def pages() -> list[Path]:
    """Every page that is written for people."""
    single = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "examples" / "README.md"]
    return [*single, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order. Raises ValueError where a fence is never closed."""
    lines = page.read_text().splitlines()
    found: list[Block] = []
    word = argument = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        if directive := _DIRECTIVE.match(line):
            word, _, argument = directive.group(1).partition(" ")
        elif fence := _FENCE.match(line):
            end = _closing(lines, number, fence, page)
            text = textwrap.dedent("\n".join(lines[number + 1 : end]) + "\n")
            language = (fence["info"].split() or [""])[0]
            found.append(Block(page, number + 1, language, text, word, argument))
            word = argument = ""
            number = end
        elif line.strip():
            word = argument = ""
        number += 1
    return found


def _closing(lines: list[str], opening: int, fence: re.Match[str], page: Path) -> int:
    for number in range(opening + 1, len(lines)):
        stripped = lines[number].strip()
        if stripped.startswith(fence["fence"]) and not stripped.strip(fence["fence"][0]):
            return number
    raise ValueError(f"{page}:{opening + 1}: this block is never closed")


def commands_of(block: Block) -> str:
    """What a person would type: a shell block as it is, of a console block the lines after `$ ` and `> `."""
    if block.language != "console":
        return block.text
    return "".join(line[2:] + "\n" for line in block.text.splitlines() if line.startswith(("$ ", "> ")))
