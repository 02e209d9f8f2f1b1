"""What the manifests in deploy/kubernetes say, held against what the worker is and does."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from continuum.config import Settings
from continuum.model import Statistics
from continuum.nursery.supervisor import WRITE_DEADLINE
from continuum.sandbox.pool import REMOVE_DEADLINE
from continuum.status.views import global_status
from tests.support.kubernetes import FOLDER, manifest, manifests, queue_depth

ROOT = FOLDER.parents[1]
DEPLOYMENT = manifest("base/deployment.yaml")
PODS = {
    "worker": DEPLOYMENT["spec"]["template"],
    "migration": manifest("migrate-job.yaml")["spec"]["template"],
    "proxy": manifest("docker/socket-proxy.yaml")["spec"]["template"],
}


def settings_of(path: Path) -> dict[str, Any]:
    values = dotenv_values(stream=io.StringIO(path.read_text()))
    return {name.lower(): value for name, value in values.items()}


SETTINGS = Settings.model_validate(settings_of(FOLDER / "base/settings.env"))


def test_every_file_is_part_of_something_or_explains_itself() -> None:
    used = {"secret.example.yaml", "migrate-job.yaml", "keda/scaledobject-by-status.yaml"}
    for file in FOLDER.rglob("kustomization.yaml"):
        used.add(str(file.relative_to(FOLDER)))
        described = manifest(str(file.relative_to(FOLDER)))
        named = [*described.get("resources", []), *(patch.get("path") for patch in described.get("patches", []))]
        named += [env for generator in described.get("configMapGenerator", []) for env in generator["envs"]]
        for name in filter(None, named):
            assert (file.parent / name).exists()
            used.add(str((file.parent / name).resolve().relative_to(FOLDER)))
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()} <= used


def test_settings_are_such_and_nothing_but_the_kubernetes_of_a_pod_adds_others() -> None:
    known = set(Settings.model_fields)
    assert set(settings_of(FOLDER / "base/settings.env")) <= known
    for name, pod in PODS.items():
        assert pod["spec"]["enableServiceLinks"] is False, f"{name}: a Service may set DB_PORT"
        for variable in pod["spec"]["containers"][0].get("env", []):
            assert variable["name"].lower() in known


@pytest.mark.parametrize("name", PODS)
def test_pods_can_do_little(name: str) -> None:
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"]
    assert "memory" in container["resources"]["limits"]
    assert container["image"] == "continuum"
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    (uid,) = re.findall(r"useradd --uid (\d+)", dockerfile)
    assert str(spec["securityContext"]["runAsGroup"]) == uid
    assert spec["securityContext"]["runAsUser"] == (0 if name == "proxy" else int(uid))


def test_a_pod_is_given_the_time_that_a_worker_may_need_to_end() -> None:
    grace = SETTINGS.shutdown_grace
    needed = grace + max(WRITE_DEADLINE, grace) + REMOVE_DEADLINE
    assert PODS["worker"]["spec"]["terminationGracePeriodSeconds"] >= needed


def test_a_worker_lives_without_its_database_and_is_ready_only_with_it() -> None:
    (container,) = PODS["worker"]["spec"]["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert container["ports"] == [{"name": "status", "containerPort": Settings.model_fields["api_port"].default}]


def test_selectors_find_the_workers_and_the_migration_may_reach_the_database() -> None:
    labels = PODS["worker"]["metadata"]["labels"]
    policy = manifest("base/network.yaml")["spec"]["podSelector"]["matchLabels"]
    for selector in (
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        manifest("base/service.yaml")["spec"]["selector"],
        manifest("base/disruption.yaml")["spec"]["selector"]["matchLabels"],
        manifest("monitoring/servicemonitor.yaml")["spec"]["selector"]["matchLabels"],
        policy,
    ):
        assert selector.items() <= labels.items()
    assert policy.items() <= PODS["migration"]["metadata"]["labels"].items()


def test_worker_and_proxy_meet_at_one_socket_of_the_node() -> None:
    worker = manifest("docker/worker.yaml")["spec"]["template"]["spec"]
    proxy = PODS["proxy"]["spec"]
    assert worker["nodeSelector"] == proxy["nodeSelector"]
    assert {"name": "DOCKER_HOST", "value": "unix:///run/continuum/docker.sock"} in worker["containers"][0]["env"]
    assert worker["volumes"][0] in proxy["volumes"]
    assert worker["containers"][0]["volumeMounts"] == [
        {"name": "docker-socket", "mountPath": "/run/continuum", "readOnly": True}
    ]
    assert "/var/run/docker.sock" not in str(worker), "the worker itself has no right to Docker's socket"


def test_a_pod_with_bubblewrap_has_room_for_its_sandboxes() -> None:
    (container,) = manifest("bubblewrap/worker.yaml")["spec"]["template"]["spec"]["containers"]
    requested = int(re.fullmatch(r"(\d+)Mi", container["resources"]["requests"]["memory"])[1])  # type: ignore[index]
    assert requested >= SETTINGS.slots * SETTINGS.container_memory_mb + 256
    assert float(container["resources"]["requests"]["cpu"]) >= SETTINGS.slots * SETTINGS.container_cpu_limit


def test_keda_has_a_worker_for_each_slots_tasks_and_asks_for_what_the_status_has() -> None:
    scaled = manifest("keda/scaledobject.yaml")["spec"]
    query, for_each = queue_depth()
    assert for_each == SETTINGS.slots
    (limit,) = set(re.findall(r"LIMIT (\d+)", query))
    assert int(limit) >= for_each * scaled["maxReplicaCount"]
    assert scaled["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    authentication = manifests("keda/scaledobject.yaml")[1]
    assert scaled["triggers"][0]["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (connection,) = authentication["spec"]["secretTargetRef"]
    assert connection["key"] in manifest("secret.example.yaml")["stringData"]

    by_status = manifest("keda/scaledobject-by-status.yaml")["spec"]
    answer = global_status(Statistics(*[0] * len(Statistics.__slots__)), [])
    for trigger in by_status["triggers"]:
        assert isinstance(answer[trigger["metadata"]["valueLocation"]], int)
        assert int(trigger["metadata"]["targetValue"]) == SETTINGS.slots
        assert trigger["name"] in by_status["advanced"]["scalingModifiers"]["formula"]
    service = manifest("base/service.yaml")["metadata"]["name"]
    assert by_status["triggers"][0]["metadata"]["url"] == f"http://{service}.continuum.svc:8080/global-status"
