"""What is expected, what came, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.attacks.attack import Attack, Result, Verdict
from tests.attacks.catalogue import THEMES

TITLES = {"control": "control", "docker": "docker/runc", "runsc": "docker/runsc", "bubblewrap": "bubblewrap"}

Results = Mapping[str, Mapping[str, Result]]
"""By target, then by attack."""


def complaint(attack: Attack, result: Result) -> str:
    """Why a result is not what must be; empty when it is."""
    if result.verdict is Verdict.UNCLEAR:
        return f"it is not clear what happened: {result.detail}"
    if result.target == "control":
        if result.verdict is Verdict.STOPPED and not attack.needs:
            return f"it does not work even where nothing protects, and so proves nothing: {result.detail}"
        return ""
    if result.target in attack.open_on:
        if result.verdict is Verdict.STOPPED and not attack.needs:
            return f"it is listed as open ({attack.open_on[result.target]}) and was stopped: {result.detail}"
        return ""
    return f"SUCCEEDED: {result.detail}" if result.verdict is Verdict.SUCCEEDED else ""


def shown(attack: Attack, results: Results) -> bool:
    """Whether the attack counts: it worked where nothing protects."""
    control = results.get("control", {}).get(attack.name)
    return control is not None and control.verdict is Verdict.SUCCEEDED


def table(attacks: Sequence[Attack], results: Results, missing: Mapping[str, str]) -> Table:
    made = Table(title="Attacks, each in a task submitted through the database", title_justify="left")
    for title in ("attack", "expected", *(TITLES[target] for target in results)):
        made.add_column(title, overflow="fold")
    chosen = {attack.name for attack in attacks}
    for theme, members in THEMES.items():
        rows = [attack for attack in members if attack.name in chosen]
        if rows:
            made.add_section()
            made.add_row(f"[bold]{theme}[/bold]")
        for attack in rows:
            made.add_row(
                attack.name, "stopped", *(_cell(attack, results[target], target, missing) for target in results)
            )
    return made


def _cell(attack: Attack, results: Mapping[str, Result], target: str, missing: Mapping[str, str]) -> str:
    result = results.get(attack.name)
    if result is None:
        return "-" if target in missing else ""
    if complaint(attack, result):
        return "[bold red]does not work[/]" if _harmless(result) else f"[bold red]{result.verdict.upper()}[/]"
    if target == "control":
        return "works" if result.verdict is Verdict.SUCCEEDED else f"[dim]not shown: needs {attack.needs}[/]"
    return "[yellow]open, as documented[/]" if target in attack.open_on else "[green]stopped[/]"


def _harmless(result: Result) -> bool:
    return result.target == "control" and result.verdict is Verdict.STOPPED


def as_json(attacks: Sequence[Attack], results: Results, missing: Mapping[str, str]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "attacks": [
            {
                "name": attack.name,
                "theme": next(theme for theme, members in THEMES.items() if attack in members),
                "wants": attack.wants,
                "expected": "stopped",
                "open_on": dict(attack.open_on),
                "shown": shown(attack, results),
                "results": {
                    target: asdict(found[attack.name]) | {"complaint": complaint(attack, found[attack.name])}
                    for target, found in results.items()
                    if attack.name in found
                },
            }
            for attack in attacks
        ],
        "missing": dict(missing),
        "counted": sum(shown(attack, results) for attack in attacks),
    }
