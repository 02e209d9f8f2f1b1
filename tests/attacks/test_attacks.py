"""Every attack on every kind of sandbox at hand, and on an unprotected one, where it must succeed.

The attacks of one target run together, before the first of its tests, in warm sandboxes; then each has a test of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar

import pytest
import trio

from continuum.sandbox import WEAKER
from tests.attacks.__main__ import ENOUGH
from tests.attacks.attack import WORKER_MARK, Attack, Result
from tests.attacks.catalogue import ATTACKS
from tests.attacks.probe import Host, this_host
from tests.attacks.table import complaint, shown
from tests.attacks.targets import Range, make_database, missing, open_target
from tests.conftest import require
from tests.support.postgres import PostgresServer, one_server


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with this_host() as host:
        yield host


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with one_server() as server:
        yield server


class Campaigns:
    """The results of each target, found when first asked for, for the attacks whose tests were selected."""

    def __init__(self, server: PostgresServer, host: Host, wanted: dict[str, list[Attack]]) -> None:
        self._server = server
        self._host = host
        self._wanted = wanted
        self._results: dict[str, dict[str, Result]] = {}

    def results(self, target: str) -> dict[str, Result]:
        if target not in self._results:
            why = missing(target)
            require("docker" if target == "control" else target, not why, why)
            place = Range(make_database(self._server, target), self._host)
            self._results[target] = trio.run(self._run, target, place)
        return self._results[target]

    async def _run(self, target: str, place: Range) -> dict[str, Result]:
        attacks = self._wanted[target]
        async with open_target(target, place, attacks) as opened:
            results = await opened.run(attacks, lambda _: None)
        return {result.attack: result for result in results}


class _NONE:
    params: ClassVar[dict[str, object]] = {}


@pytest.fixture(scope="session")
def campaigns(request: pytest.FixtureRequest, server: PostgresServer, host: Host) -> Iterator[Campaigns]:
    wanted: dict[str, list[Attack]] = {}
    for item in request.session.items:
        target, attack = (getattr(item, "callspec", _NONE).params.get(name) for name in ("target", "attack"))
        if isinstance(target, str) and isinstance(attack, Attack):
            wanted.setdefault(target, []).append(attack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "CONTINUUM_ATTACK_SECRET", f"{WORKER_MARK}-environment")
        yield Campaigns(server, host, wanted)


def _all_on(*targets: str) -> pytest.MarkDecorator:
    cases = [pytest.param(target, attack, id=f"{target}-{attack.name}") for target in targets for attack in ATTACKS]
    return pytest.mark.parametrize(("target", "attack"), cases)


@_all_on("control")
def test_it_works_where_nothing_protects(campaigns: Campaigns, target: str, attack: Attack) -> None:
    result = campaigns.results(target)[attack.name]
    assert not complaint(attack, result), complaint(attack, result)
    if not shown(attack, {target: campaigns.results(target)}):
        pytest.skip(f"this machine cannot show it: needs {attack.needs}")


@_all_on("docker", "runsc", "bubblewrap")
def test_it_is_stopped(campaigns: Campaigns, target: str, attack: Attack) -> None:
    result = campaigns.results(target)[attack.name]
    assert not complaint(attack, result), complaint(attack, result)


def test_enough_attacks_count(campaigns: Campaigns) -> None:
    if len(campaigns._wanted.get("control", [])) < len(ATTACKS):
        pytest.skip("only a part of the attacks was selected")
    results = {"control": campaigns.results("control")}
    assert sum(shown(attack, results) for attack in ATTACKS) >= ENOUGH


def test_no_attack_is_expected_to_succeed_on_docker() -> None:
    assert [attack.name for attack in ATTACKS if "docker" in attack.open_on] == []


def test_what_is_open_on_bubblewrap_is_in_its_warning() -> None:
    reasons = {attack.open_on["bubblewrap"] for attack in ATTACKS if "bubblewrap" in attack.open_on}
    assert reasons
    assert [reason for reason in reasons if reason not in WEAKER] == []


def test_each_attack_has_a_name_of_its_own_and_says_what_it_is_after() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert all(attack.wants for attack in ATTACKS)
