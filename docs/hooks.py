"""What mkdocs does with our pages: puts in what is generated, takes out what only tests read, and looks after links.

A page holds `<!-- generated: settings -->` where a part is made from the code, and `<!-- plot: ways -->` where a plot is drawn. A
link to a file of the repository that is not in docs/ leads there when mkdocs.yml names the repository's address (repo_url), and
else becomes the file's name.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from docs.generators import commands, http, metrics, plots, python, settings, tables

ROOT = Path(__file__).parents[1]

log = logging.getLogger(f"mkdocs.hooks.{__name__}")

GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands.generate,
    "exit-codes": commands.generate_exit_codes,
    "http": http.generate,
    "metrics": metrics.generate,
    "python": python.generate,
    "settings": settings.generate,
    "tables": tables.generate,
}

_GENERATED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_PLOT = re.compile(r"^<!-- plot: (\w+) -->$", re.MULTILINE)
_FOR_TESTS = re.compile(r"^[ \t]*<!-- (?:block|page): .*? -->\n", re.MULTILINE)
_LINK_UP = re.compile(r"\[([^\]]+)\]\((\.\.?/[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """From what stands in the repository to what the site shows."""

    def outside(found: re.Match[str]) -> str:
        text, target, _ = found.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if config.repo_url:
            return f"[{text}]({config.repo_url}/blob/main/{path})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    markdown = _FOR_TESTS.sub("", markdown)
    markdown = _GENERATED.sub(lambda found: GENERATED[found[1]](), markdown)
    markdown = _PLOT.sub(lambda found: plots.draw(found[1]), markdown)
    return _LINK_UP.sub(outside, markdown)
