"""Looks at the first page with Chromium and prints as JSON what a person would see: `python browser.py CHROMIUM ADDRESS`.

A process of its own: playwright runs an asyncio loop, whose policy in the process of the tests is trio-asyncio's.
"""

from __future__ import annotations

import json
import sys

from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def look_at(chromium: str, address: str) -> dict[str, object]:
    """The page's title, texts, rows and colours; what it requested; and what the browser complained of."""
    complaints: list[str] = []
    requests: set[str] = set()
    background: dict[str, str] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.add(request.url))
        page.goto(address + "/")
        names = ("worker", "readiness", "pending", "processed", "workers")
        texts = {name: page.inner_text(f"#{name}") for name in names}
        rows = [row.inner_text() for row in page.query_selector_all("#tasks tbody tr")]
        page.emulate_media(color_scheme="light")
        background["light"] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        background["dark"] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        title = page.title()
        browser.close()
    return {
        "title": title,
        "texts": texts,
        "rows": rows,
        "background": background,
        "complaints": complaints,
        "requests": sorted(requests),
    }


if __name__ == "__main__":
    print(json.dumps(look_at(*sys.argv[1:])))
