"""The manifests in deploy/kubernetes against the schemas of Kubernetes, each field that it does not know an error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import require
from tests.support.kubernetes import FOLDER, Manifest, manifests
from tests.support.uv import UV, require_uv, run

VALIDATOR = ("tool", "run", "--from", "kubernetes-validate==1.37.0", "kubernetes-validate", "--strict")
VERSIONS = ("1.33", "1.37")
"""The oldest that the manifests are for, and the newest that the validator knows."""
OF_OTHERS = ("Component", "Kustomization", "ScaledObject", "ServiceMonitor", "TriggerAuthentication")
"""Kinds that Kubernetes itself does not have."""


def validate(found: list[Manifest], folder: Path) -> None:
    require_uv()
    own = [one for one in found if one["kind"] not in OF_OTHERS]
    for number, one in enumerate(own):
        one["metadata"].setdefault("name", f"unnamed-{number}")  # which only what is created has
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(own))
    for version in VERSIONS:
        said = run(UV, *VALIDATOR, "-k", version, str(file))
        assert said.count(" passed ") == len(own), said


def test_kubernetes_knows_every_field_of_every_whole_manifest(tmp_path: Path) -> None:
    patches = {FOLDER / "docker/worker.yaml", FOLDER / "bubblewrap/worker.yaml"}
    whole = [file for file in sorted(FOLDER.rglob("*.yaml")) if file not in patches]
    validate([one for file in whole for one in manifests(str(file.relative_to(FOLDER)))], tmp_path)


@pytest.mark.parametrize("kind", ["docker", "bubblewrap"])
def test_each_kind_of_sandbox_makes_a_whole_with_its_options(kind: str, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    require("kubectl", kubectl is not None, "kubectl puts manifests together")
    assert kubectl is not None
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    chosen = tmp_path / "kubernetes" / kind / "kustomization.yaml"
    assert "# components:" in chosen.read_text()
    chosen.write_text(chosen.read_text().replace("# components:", "components:"))
    done = subprocess.run(
        [kubectl, "kustomize", str(chosen.parent)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: list[Manifest] = list(yaml.safe_load_all(done.stdout))
    validate(found, tmp_path)
    assert {one["metadata"]["namespace"] for one in found if one["kind"] != "Namespace"} == {"continuum"}
    (worker,) = [one for one in found if one["kind"] == "Deployment"]
    assert "replicas" not in worker["spec"], "it is KEDA's to say"
    assert len([one for one in found if one["kind"] == "ScaledObject"]) == 1
    spec = worker["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {"name": "SANDBOX", "value": kind} in container["env"]
    assert "DATABASE_URL" in [one["name"] for one in container["env"]]
    assert container["envFrom"][0]["configMapRef"]["name"].startswith("continuum-settings-")
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
