"""What the pages and deploy/observability say is what a worker shows."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import yaml
from prometheus_client.parser import text_string_to_metric_families

from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.sandbox.protocol import BackendUnavailable, Layer
from continuum.telemetry import Telemetry, start_telemetry, submission
from continuum.telemetry.instruments import Instruments
from continuum.telemetry.prometheus import prometheus_name
from docs.generators import metrics
from tests.support.fake_sandbox import FakeBackend, FakeSandbox
from tests.support.harness import settings
from tests.support.promtool import promtool
from tests.unit.test_telemetry import no_variables

__all__ = ["no_variables"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
PAGE = ROOT / "docs" / "how-to" / "alerts.md"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana/dashboards/continuum.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
OF_PROMETHEUS = {"up"}
"""Metrics that Prometheus makes itself."""
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}

_SELECTOR = re.compile(r"\b([a-z][a-z0-9_]*)\{([^}]*)\}")
_MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def queries() -> Iterator[tuple[str, str]]:
    """Where each query stands, and its text."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


QUERIES = list(queries())


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """The metrics that a query names, each with the labels that it asks for there."""
    return [(name, set(_MATCHER.findall(matchers))) for name, matchers in _SELECTOR.findall(query)]


class FailsOnce(FakeBackend):
    """A backend whose first start fails."""

    failed = False

    async def start(self, layer: Layer | None = None) -> FakeSandbox:
        if not self.failed:
            self.failed = True
            raise BackendUnavailable("not yet")
        return await super().start(layer)


@asynccontextmanager
async def busy_worker() -> AsyncIterator[Telemetry]:
    """A worker to which has happened what may happen to one."""
    database, shutdown = MemoryDatabase(), Shutdown()
    state = WorkerState(id="w", slots=2)
    async with start_telemetry(settings(), "w") as telemetry, trio.open_nursery() as nursery:
        timed, backend = telemetry.timed_database(database), telemetry.timed_backend(FailsOnce())
        with submission(2):
            ids = await timed.submit([NewTask(code="hello"), NewTask(code="exit 3", max_attempts=2)])
        nursery.start_soon(supervise, settings(), state, timed, backend, telemetry, shutdown)
        with trio.fail_after(600):
            while not all(task.finished_for_good for task in await database.fetch(ids)):
                await trio.sleep(0.1)
            database.unavailable = True
            while not state.database_failures:
                await trio.sleep(0.1)
            database.unavailable = False
            await trio.sleep(60)
        yield telemetry
        shutdown.request()


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """The names at /metrics of such a worker, each with its labels."""
    found: dict[str, set[str]] = {}

    async def look() -> None:
        async with busy_worker() as telemetry:
            text, _ = await telemetry.metrics_text() or (b"", "")
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)

    trio.run(look, clock=trio.testing.MockClock(autojump_threshold=0.02))
    return found


def test_the_page_lists_every_metric_with_its_attributes() -> None:
    rows = metrics.generate().splitlines()[2:]
    assert len(rows) == len(Instruments().all)
    (runs,) = [row for row in rows if row.startswith("| `messaging.process.duration` ")]
    assert "`messaging_process_duration_seconds_bucket`" in runs
    assert "`continuum.task.ending`, `error.type`" in runs
    assert "Buckets: 0.005, 0.01" in runs


@pytest.mark.parametrize(
    ("place", "query"), QUERIES, ids=[f"{place}-{number}" for number, (place, _) in enumerate(QUERIES)]
)
def test_rules_and_dashboard_ask_for_what_a_worker_shows(place: str, query: str, shown: dict[str, set[str]]) -> None:
    asked = selectors(query)
    assert asked, query
    rest = _SELECTOR.sub("", _GROUPING.sub("", query))
    assert not re.search(r"\b(continuum|messaging|db|process|up)(_|\b)", rest), "every selector has its braces"
    for name, labels in asked:
        if name in OF_PROMETHEUS:
            continue
        assert name in shown, f"{place} asks for {name}, which no worker shows"
        unknown = labels - shown[name] - LABELS_OF_PROMETHEUS
        assert not unknown, f"{place} asks for {name} by {unknown}, which it has not"
    known = set().union(*(shown.get(name, set()) for name, _ in asked)) | LABELS_OF_PROMETHEUS
    for group in _GROUPING.findall(query):
        unknown = {label.strip() for label in group.split(",") if label.strip()} - known
        assert not unknown, f"{place} groups by {unknown}"


def test_every_metric_is_on_the_dashboard_or_known_not_to_be() -> None:
    asked = {name for panel in PANELS for target in panel["targets"] for name, _ in selectors(target["expr"])}
    left_out = [
        measure.name
        for measure in Instruments().all
        if not any(name.startswith(prometheus_name(measure)) for name in asked)
    ]
    assert left_out == ["process.uptime"]


# -- rules -------------------------------------------------------------------------------------------------------------


def test_each_alert_says_what_it_is_and_has_its_section_in_the_runbook() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^## (Continuum\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        annotations = rule["annotations"]
        assert annotations["summary"], name
        assert len(annotations["description"]) > 40, name
        assert annotations["runbook_url"] == f"{PAGE.relative_to(ROOT)}#{name.lower()}", name
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        for part in ("**Means**", "**Look at**", "**Do**"):
            assert part in section, f"{name} has no {part}"


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", ROOT / "tests/unit/alerts.test.yml")


def test_each_rule_is_tried_both_ways() -> None:
    tried = yaml.safe_load((ROOT / "tests/unit/alerts.test.yml").read_text())["tests"]
    cases = [case for test in tried for case in test["alert_rule_test"]]
    for fires in (True, False):
        names = {case["alertname"] for case in cases if bool(case.get("exp_alerts")) is fires}
        assert names == {rule["alert"] for rule in RULES}


def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    jobs = [scraped["job_name"] for scraped in config["scrape_configs"]]
    assert jobs == ["continuum"]
    assert set(re.findall(r'job="(\w+)"', (FOLDER / "alerts.yml").read_text())) == set(jobs)


# -- the dashboard -----------------------------------------------------------------------------------------------------


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"q{number}",
            "expr": query.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*"),
        }
        for number, (_, query) in enumerate(QUERIES)
    ]
    assert not [rule["expr"] for rule in rules if "$" in rule["expr"]]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_can_be_read_without_asking_somebody(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 30
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
    assert unit in {"short", "s", "ops", "percentunit", "bytes"}
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        for name, labels in selectors(target["expr"]):
            assert {"job", "instance"} <= labels, f"{name}: the choice of jobs and workers is for all panels"


def test_the_dashboard_is_whole() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("continuum", "Continuum")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "Now", "Throughput and latency", "Queue", "Workers", "Sandboxes", "Failures", "Database",
    ]  # fmt: skip
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["query"] == "prometheus"


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources/continuum.yml").read_text())["datasources"]
    uids = {source["uid"]: source for source in sources}
    (link,) = uids["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link["datasourceUid"] in uids, "an exemplar leads to its trace"
    compose = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/continuum.yml").read_text())["providers"]
    mounted = {volume.split(":")[1] for volume in compose["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    collector = yaml.safe_load((FOLDER / "collector.yml").read_text())
    used = collector["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(used[kind]) == set(collector[kind])
