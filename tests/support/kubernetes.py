"""The manifests in deploy/kubernetes, as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
Manifest = dict[str, Any]


def manifests(name: str) -> list[Manifest]:
    """Those in one file, as `keda/scaledobject.yaml`."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def manifest(name: str) -> Manifest:
    """The first in a file."""
    return manifests(name)[0]


def queue_depth() -> tuple[str, int]:
    """KEDA's query, and how many tasks it has for each worker."""
    (trigger,) = manifest("keda/scaledobject.yaml")["spec"]["triggers"]
    return trigger["metadata"]["query"], int(trigger["metadata"]["targetQueryValue"])
