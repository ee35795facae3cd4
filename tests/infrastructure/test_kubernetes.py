"""deploy/kubernetes and deploy/ec2: the objects are valid, and consistent with the worker and the template."""

from __future__ import annotations

import json
import re
import socket
import tomllib
from configparser import RawConfigParser
from contextlib import closing
from http.client import HTTPConnection
from importlib import import_module
from io import StringIO
from pathlib import PurePosixPath
from typing import Any

import boto3
import kubernetes_validate
import pytest
from samtranslator.yaml_helper import yaml_parse
from typer.main import get_command

from handler.settings import WorkerSettings
from handler.worker.command import app
from handler.worker.health import serve_health
from tests.infrastructure.kubernetes_objects import BUILT, REPO, VERSIONS, container, one, pod, settings, validate
from tests.infrastructure.kustomization import Object

EVERY = [(name, found) for name, objects in BUILT.items() for found in objects]

# KEDA's kinds have no schema in Kubernetes: these are the field names in KEDA's documentation.
KEDA = {
    "ScaledObject": {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "triggers"},
    "TriggerAuthentication": {"podIdentity"},
}


@pytest.mark.parametrize(("name", "found"), EVERY, ids=[f"{name}-{found['kind']}" for name, found in EVERY])
def test_object_is_valid(name: str, found: Object) -> None:
    if found["apiVersion"] == "keda.sh/v1alpha1":
        assert found["spec"].keys() <= KEDA[found["kind"]]
        return
    for version in VERSIONS:
        validate(found, version)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.template.spec.terminationGracePeriod", 40),
        ("Deployment", "spec.replicas", "three"),
        ("ConfigMap", "data.BATCH_SIZE", 10),
        ("HorizontalPodAutoscaler", "spec.maxReplicas", None),
        ("RuntimeClass", "scheduling.nodeSelectors", {}),
        ("NetworkPolicy", "spec.policyTypes", "Egress"),
    ],
)
def test_invalid_object_is_detected(kind: str, path: str, value: object) -> None:
    broken = json.loads(json.dumps(one(kind)))
    *parents, last = path.split(".")
    place = broken
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


def test_base_has_the_expected_objects() -> None:
    assert sorted(found["kind"] for found in BUILT["base"]) == [
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "RuntimeClass",
        "ServiceAccount",
    ]


def test_config_map_matches_the_worker_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = WorkerSettings.model_fields
    assert settings().keys() <= {name.upper() for name in fields}
    assert {name.upper() for name, field in fields.items() if field.is_required()} <= settings().keys()
    for name in fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in settings().items():
        monkeypatch.setenv(name, value)
    read = WorkerSettings.read()
    assert {name: str(getattr(read, name.lower())) for name in settings()} == settings()


def test_config_map_matches_the_template() -> None:
    template = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))
    resources, found = template["Resources"], settings()
    names = {
        "TABLE_NAME": resources["TicketTable"]["Properties"]["TableName"],
        "QUEUE_URL": resources["TicketQueue"]["Properties"]["QueueName"],
        "DLQ_URL": resources["DeadLetterQueue"]["Properties"]["QueueName"],
    }
    for setting, name in names.items():
        assert found[setting].rpartition("/")[2] == name["Fn::If"][2]  # the name without a prefix
    for setting, bucket in (("RAW_BUCKET", "RawBucket"), ("ENRICHED_BUCKET", "EnrichedBucket")):
        pattern, prefix = resources[bucket]["Properties"]["BucketName"]["Fn::Sub"]
        default = prefix["Prefix"]["Fn::If"][2]["Fn::Sub"]
        expected = pattern.replace("${Prefix}", default)
        account, region = re.findall(r"//sqs\.(.+?)\.amazonaws\.com/(\d+)/", found["QUEUE_URL"])[0][::-1]
        assert found[setting] == expected.replace("${AWS::AccountId}", account).replace("${AWS::Region}", region)
    assert found["MAX_RECEIVE_COUNT"] == str(template["Parameters"]["MaximumReceiveCount"]["Default"])


def test_account_and_region_are_consistent() -> None:
    text = json.dumps([found for _, found in EVERY])
    assert set(re.findall(r"(?<!\d)\d{12}(?!\d)", text)) == {"123456789012"}
    assert set(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", text)) == {"eu-central-1"}


def test_flox_runs_the_pod() -> None:
    runtime = one("RuntimeClass")
    assert (runtime["metadata"]["name"], runtime["handler"]) == ("flox", "flox")
    assert runtime["scheduling"]["nodeSelector"] == {"flox.dev/enabled": "true"}
    assert pod()["runtimeClassName"] == runtime["metadata"]["name"]
    assert container()["image"] == "flox/empty:1.0.0"
    environment = one("Deployment")["spec"]["template"]["metadata"]["annotations"]["flox.dev/environment"]
    owner, _, name = environment.partition("/")
    assert re.fullmatch(r"[a-z0-9-]+", owner)
    pushed = json.loads((REPO / "deploy" / "processor" / ".flox" / "env.json").read_text(encoding="utf-8"))
    assert name.partition(":")[0] == pushed["name"]


def arguments_of(command: list[str]) -> dict[str, Any]:
    """The parameters that the worker's command line parses from a command."""
    program, *arguments = command
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts[program].partition(":")
    assert callable(getattr(import_module(module), function))
    assert (
        REPO / ".flox" / "pkgs" / f"{program}.nix"
    ).is_file()  # Flox's run mode sets no PYTHONPATH, so the program must be packaged
    return get_command(app).make_context(program, arguments).params


def test_command_is_packaged_and_ends_within_the_grace_period() -> None:
    assert arguments_of(container()["command"])["grace"] + 5 < pod()["terminationGracePeriodSeconds"]


def test_probes_match_the_workers_endpoints() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    probes = {kind: container()[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    annotations = one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    asked = {ports[probe["port"]] for probe in probes.values()} | {int(annotations["prometheus.io/port"])}
    assert asked == {int(settings()["HEALTH_PORT"])} == {8080}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve_health(port, lambda: "loading", lambda: b""), closing(HTTPConnection("127.0.0.1", port)) as connection:
        codes = {}
        for kind, path in {
            **{k: p["path"] for k, p in probes.items()},
            "metrics": annotations["prometheus.io/path"],
        }.items():
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            codes[kind] = answer.status
    # A worker that is still loading its models is alive but not ready; its pod is not killed.
    assert codes == {"startup": 503, "readiness": 503, "liveness": 200, "metrics": 200}


def test_open_circuit_breaker_neither_restarts_pods_nor_blocks_a_drain() -> None:
    paths = {kind: container()[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    codes = {}
    with serve_health(port, lambda: "stopped receiving", lambda: b"", lambda: None):
        for kind, path in paths.items():
            with closing(HTTPConnection("127.0.0.1", port)) as connection:
                connection.request("GET", path)
                codes[kind] = connection.getresponse().status
    assert codes == {"startup": 200, "readiness": 503, "liveness": 200}
    assert one("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_container_is_restricted() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] > 0
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one("ServiceAccount")["automountServiceAccountToken"] is pod()["automountServiceAccountToken"] is False
    assert pod()["serviceAccountName"] == one("ServiceAccount")["metadata"]["name"]
    assert "eks.amazonaws.com/role-arn" in one("ServiceAccount")["metadata"]["annotations"]


@pytest.mark.parametrize("name", BUILT)
def test_network_policy_allows_only_what_the_worker_needs(name: str) -> None:
    policy = one("NetworkPolicy", name)["spec"]
    assert policy["podSelector"] == one("Deployment", name)["spec"]["selector"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (scrapes,) = policy["ingress"]
    assert scrapes["ports"] == [{"protocol": "TCP", "port": container(name)["ports"][0]["name"]}]
    allowed = {(each["protocol"], each["port"]) for rule in policy["egress"] for each in rule["ports"]}
    # The name service, and HTTPS: the endpoint that boto3 chooses for each service.
    assert allowed == {("UDP", 53), ("TCP", 53), ("TCP", 443)}
    session = boto3.session.Session(region_name="eu-central-1")
    urls = [session.client(service).meta.endpoint_url for service in ("s3", "sqs", "dynamodb", "sts")]
    assert all(url.startswith("https://") and url.count(":") == 1 for url in urls)


@pytest.mark.parametrize("name", BUILT)
def test_writable_paths_are_mounted(name: str) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod(name)["volumes"]}
    written = [
        settings()["BUNDLE_CACHE_DIR"],
        "/tmp",
        *(e["value"] for e in container(name)["env"] if e["name"] == "HOME"),
    ]
    assert len(written) == 3
    for path in written:
        assert any(PurePosixPath(path).is_relative_to(mount) for mount in mounts.values()), path
    assert container(name)["envFrom"] == [{"configMapRef": {"name": one("ConfigMap", name)["metadata"]["name"]}}]


def test_resources_fit_the_settings() -> None:
    requests, limits = container()["resources"]["requests"], container()["resources"]["limits"]
    workers, threads = int(settings()["NUM_WORKERS"]), int(settings()["INTRA_OP_THREADS"])
    assert workers * threads == int(requests["cpu"])
    megabytes = {"Mi": 1, "Gi": 1024}
    requested, limit = (int(value[:-2]) * megabytes[value[-2:]] for value in (requests["memory"], limits["memory"]))
    assert 400 * workers < requested <= limit  # the compact profile's budget is 400 MB per process


@pytest.mark.parametrize("name", BUILT)
def test_selectors_match_the_pods(name: str) -> None:
    deployment = one("Deployment", name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"], one("PodDisruptionBudget", name)["spec"]["selector"]]
    selectors += [constraint["labelSelector"] for constraint in pod(name)["topologySpreadConstraints"]]
    assert selectors == [{"matchLabels": labels}] * len(selectors)
    assert len({constraint["topologyKey"] for constraint in pod(name)["topologySpreadConstraints"]}) == 2


def test_autoscaler_scales_the_deployment() -> None:
    autoscaler, deployment = one("HorizontalPodAutoscaler")["spec"], one("Deployment")
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (3, 10)
    assert deployment["spec"]["replicas"] == autoscaler["minReplicas"]
    assert one("PodDisruptionBudget")["spec"]["maxUnavailable"] < deployment["spec"]["replicas"]


def test_systemd_timeout_exceeds_the_grace_period() -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_file(StringIO((REPO / "deploy" / "ec2" / "ticket-processor.service").read_text(encoding="utf-8")))
    service = unit["Service"]
    flox, _, command = service["ExecStart"].partition(" -- ")
    assert flox.split()[:2] == ["flox", "activate"]
    annotations = one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert flox.split()[-2:] == ["-r", annotations["flox.dev/environment"]]
    assert arguments_of(command.split())["grace"] + 5 < int(service["TimeoutStopSec"])
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"  # the worker's exit code for missing settings
