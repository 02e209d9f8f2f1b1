"""What the pages and deploy/observability say is what a worker shows."""

from __future__ import annotations

from continuum.telemetry.instruments import Instruments
from docs.generators import metrics


def test_the_page_lists_every_metric_with_its_attributes() -> None:
    rows = metrics.generate().splitlines()[2:]
    assert len(rows) == len(Instruments().all)
    (runs,) = [row for row in rows if row.startswith("| `messaging.process.duration` ")]
    assert "`messaging_process_duration_seconds_bucket`" in runs
    assert "`continuum.task.ending`, `error.type`" in runs
    assert "Buckets: 0.005, 0.01" in runs
