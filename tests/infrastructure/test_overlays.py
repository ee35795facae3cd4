"""The overlays of deploy/kubernetes and docs/kubernetes.md: each overlay makes only its documented change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from enrichment.bundle import install
from handler.settings import WorkerSettings
from tests.infrastructure.kubernetes_objects import (
    BUILT,
    FOLDERS,
    KUBERNETES,
    REPO,
    container,
    one,
    pod,
    settings,
    validate,
)
from tests.infrastructure.kustomization import build
from tests.infrastructure.watched import TEMPLATE

# The field names in KEDA's documentation.
TRIGGER = {"type", "metadata", "authenticationRef"}
SQS_TRIGGER = {"queueURL", "queueURLFromEnv", "queueLength", "activationQueueLength", "awsRegion", "scaleOnInFlight"}


def test_shared_models_overlay_replaces_only_one_volume() -> None:
    shared, base = BUILT["shared-models"], BUILT["base"]
    claim = one("PersistentVolumeClaim", "shared-models")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = pod("shared-models")["volumes"]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in volumes
    restored = json.loads(json.dumps([found for found in shared if found is not claim]))
    (deployment,) = [found for found in restored if found["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["volumes"] = pod()["volumes"]
    assert restored == base


def test_pods_keep_copies_of_other_pods_on_a_shared_volume(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    installed = install(lambda name: (bundle / name).open("rb"), tmp_path, place="the fixture")
    # A partial copy of process 1 in another pod: this pod cannot tell whether that process still runs.
    copy = installed.rename(tmp_path / f"{installed.name}.part-ticket-processor-7d4b9-x2x9k-1.abc")
    assert install(lambda name: (bundle / name).open("rb"), tmp_path, place="the fixture") == installed
    assert {path.name for path in copy.iterdir()} == {*manifest["files"], "bundle.json"}


def test_keda_overlay_replaces_the_autoscaler() -> None:
    assert "HorizontalPodAutoscaler" not in {found["kind"] for found in BUILT["keda"]}
    scaled, ours = one("ScaledObject", "keda")["spec"], one("HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == one("Deployment", "keda")["metadata"]["name"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (ours["minReplicas"], ours["maxReplicas"])
    (trigger,) = scaled["triggers"]
    assert trigger.keys() <= TRIGGER
    assert trigger["type"] == "aws-sqs-queue"
    assert trigger["metadata"].keys() <= SQS_TRIGGER
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA accepts only strings
    assert trigger["metadata"]["queueURLFromEnv"] in settings()
    assert trigger["authenticationRef"]["name"] == one("TriggerAuthentication", "keda")["metadata"]["name"]


def test_keda_bulk_overlay_reads_and_scales_on_both_queues() -> None:
    data: dict[str, Any] = {name.lower(): value for name, value in one("ConfigMap", "keda-bulk")["data"].items()}
    lanes = WorkerSettings(**data).lanes
    base: dict[str, Any] = {name.lower(): value for name, value in settings().items()}
    assert lanes[:1] == WorkerSettings(**base).lanes
    names = [TEMPLATE["Resources"][name]["Properties"]["QueueName"] for name in ("TicketQueue", "BulkQueue")]
    assert [lane.name for lane in lanes] == [name["Fn::If"][2] for name in names]
    assert [lane.dlq_url for lane in lanes] == [f"{lane.queue_url}-dlq" for lane in lanes]
    assert data["raw_bucket"] == ",".join([base["raw_bucket"], base["raw_bucket"].replace("-raw", "-bulk")])
    scaled, alone = one("ScaledObject", "keda-bulk")["spec"], one("ScaledObject", "keda")["spec"]
    assert [trigger["metadata"]["queueURL"] for trigger in scaled["triggers"]] == [lane.queue_url for lane in lanes]
    for trigger in scaled["triggers"]:
        assert trigger["metadata"].keys() <= SQS_TRIGGER
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    # Otherwise the overlay is that of one queue.
    (first, only) = ({**each["triggers"][0], "metadata": {}} for each in (scaled, alone))
    assert first == only
    assert {**scaled, "triggers": []} == {**alone, "triggers": []}


def test_pinned_image_overlay_changes_only_the_image() -> None:
    pinned, base = json.loads(json.dumps(BUILT["pinned-image"])), BUILT["base"]
    (deployment,) = [found for found in pinned if found["kind"] == "Deployment"]
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    name, _, digest = only["image"].partition("@sha256:")
    assert name == container()["image"].partition(":")[0]
    # A placeholder, as the account: the registry could not be reached when this was written.
    assert digest == "0" * 64
    only["image"] = container()["image"]
    assert pinned == base


def test_unknown_kustomization_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [], "namePrefix": "my-"}))
    with pytest.raises(AssertionError, match="unsupported field"):
        build(tmp_path)


def test_documented_paths_exist() -> None:
    page = (REPO / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:deploy|handler|tests|\.flox)/[\w./-]*\w", page))
    assert [name for name in sorted(named) if not (REPO / name).exists()] == []
    for folder in FOLDERS:
        assert f"deploy/kubernetes/{folder.relative_to(KUBERNETES)}" in page
    assert set(re.findall(r"(?<!\d)\d{12}(?!\d)", page)) == {"123456789012"}


def test_documented_overlay_is_valid(tmp_path: Path) -> None:
    page = (REPO / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (overlay,) = re.findall(r"```yaml\n# production/kustomization\.yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "deploy").symlink_to(REPO / "deploy")
    (tmp_path / "production").mkdir()
    (tmp_path / "production" / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    objects = build(tmp_path / "production")
    for found in objects:
        validate(found)
    (deployment,) = [found for found in objects if found["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == ["models", "tmp", "floxhub-token"]
    assert spec["containers"][0]["volumeMounts"][-1]["mountPath"] == "/var/run/secrets/flox.dev"
    assert spec["containers"][0]["command"] == container()["command"]
