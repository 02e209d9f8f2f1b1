"""All attacks, in the order of the table."""

from __future__ import annotations

from tests.attacks import escape, kernel, limits, mounts, network, privileges, remains, runner, secrets, traces
from tests.attacks.attack import Attack

THEMES: dict[str, tuple[Attack, ...]] = {
    "escape": (*mounts.ATTACKS, *escape.ATTACKS),
    "kernel": kernel.ATTACKS,
    "privileges": privileges.ATTACKS,
    "runner": runner.ATTACKS,
    "limits": limits.ATTACKS,
    "remains": (*remains.ATTACKS, *traces.ATTACKS),
    "network": network.ATTACKS,
    "secrets": secrets.ATTACKS,
}

ATTACKS = tuple(attack for attacks in THEMES.values() for attack in attacks)
