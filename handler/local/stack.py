"""The embedded stack: every AWS service that the system needs, emulated on this machine from template.yaml.

CloudFormation creates the real templates in an emulator, so buckets, notification, queues, policies, table and alarms
are declared once, and names are read from what was deployed. Starts in about a second.

    with EmbeddedStack() as stack:
        os.environ.update(stack.environment())

    python -m handler.local up --env-file stack.env
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from handler.local.emulator import CREDENTIALS, HOST, REGION, Emulator, StackError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EmbeddedStack", "StackError", "template_body"]

STACK_NAME = "ticket-enrichment"
TEMPLATE = Path(__file__).resolve().parents[2] / "template.yaml"
OBSERVABILITY = TEMPLATE.parent / "deploy" / "observability.yaml"
# The mapping is off because the worker reads the queue; no image of that name needs to exist.
PARAMETERS = {"ImageUri": "ticket-enrichment:local", "MappingEnabled": "false"}
# MiniStack 1.5.33 does not support alarms on metric math.
_OBSERVABILITY_PARAMETERS = {"MetricMathAlarms": "false"}
# Settings that only make sense in the function's image, or that the user chooses.
_NOT_PASSED_ON = frozenset({"HOME", "MODEL_BUNDLE", "MODEL_BUNDLE_DIGEST", "BUNDLE_CACHE_DIR", "LOG_LEVEL"})
_SECONDS_TO_CREATE = 30.0
_TEMPLATES = "cloudformation-templates"  # a bucket


def template_body(template: Path) -> str:
    """A template as JSON, without the comments. Raises StackError."""
    from samtranslator.yaml_helper import yaml_parse
    from yaml import YAMLError

    try:
        return json.dumps(yaml_parse(template.read_text(encoding="utf-8")), separators=(",", ":"))
    except YAMLError as error:
        words = " ".join(str(error).split())
        raise StackError(f"{template.name} could not be created: it is not YAML: {words}; fix the template") from error


class EmbeddedStack:
    """The resources of both templates in an emulator, from `with` (or `start`) to its end (or `stop`).

    `port` 0 takes a free one, `parameters` are those of `template` in addition to PARAMETERS, and `emulator` holds
    settings of MiniStack itself, such as MINISTACK_LAMBDA_PROXY_<function>. `outputs` are the outputs of `template`.
    Raises StackError.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        template: Path = TEMPLATE,
        parameters: Mapping[str, str] | None = None,
        emulator: Mapping[str, str] | None = None,
    ) -> None:
        self.outputs: dict[str, str] = {}
        self._template = template
        self._parameters = {**PARAMETERS, **(parameters or {})}
        self._emulator = Emulator(port, emulator)
        self._clients: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """The address of every service (AWS_ENDPOINT_URL)."""
        return f"http://{HOST}:{self._emulator.port}"

    @property
    def pid(self) -> int | None:
        """The emulator's process id, once it has been started."""
        return self._emulator.pid

    def client(self, service: str) -> Any:
        """Return the stack's boto3 client of a service, as its root user; `stop` closes it."""
        if service not in self._clients:
            make: Any = boto3.session.Session().client
            self._clients[service] = make(
                service,
                endpoint_url=self.endpoint_url,
                region_name=REGION,
                aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                # No proxies: a company proxy cannot reach the loopback address.
                config=Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard"}, proxies={}),
            )
        return self._clients[service]

    def environment(self) -> dict[str, str]:
        """Return the environment for handler.settings and boto3: the deployed function's settings and the endpoint."""
        function = self.client("lambda").get_function_configuration(FunctionName=self.outputs["FunctionName"])
        settings = function["Environment"]["Variables"]
        return {
            **{name: value for name, value in settings.items() if name not in _NOT_PASSED_ON},
            **CREDENTIALS,
            "AWS_SESSION_TOKEN": "",  # a session token from the user's shell would make these credentials invalid
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def upload(self, template: Path) -> str:
        """Upload a template to S3, as sam does; returns its URL. A request to CloudFormation may have 51,200 bytes.

        Raises StackError.
        """
        self.client("s3").create_bucket(Bucket=_TEMPLATES)
        self.client("s3").put_object(Bucket=_TEMPLATES, Key=template.name, Body=template_body(template).encode())
        return f"{self.endpoint_url}/{_TEMPLATES}/{template.name}"

    def start(self) -> None:
        """Start the emulator and create the template's resources in it."""
        if not self._template.is_file():
            raise StackError(f"there is no {self._template}: name the template of the repository")
        try:
            self._emulator.start()
            self._create_resources()
            self._settle_mappings()
        except (BotoCoreError, ClientError) as error:
            words = " ".join((self._emulator.last_error() or str(error)).split())
            self.stop()
            raise StackError(
                f"{self._template.name} could not be created: {words}; fix the template, or try again"
            ) from error
        except BaseException:  # also after Ctrl-C nothing may be left behind
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the emulator and delete its data; may be called twice."""
        while self._clients:
            self._clients.popitem()[1].close()
        self._emulator.stop()

    def wait(self) -> None:
        """Block until the emulator ends, which is always an error. Raises StackError."""
        self._emulator.wait()

    def _create_resources(self) -> None:
        stack = self._create(STACK_NAME, self._template, self._parameters)
        self.outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        known = {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in stack["Parameters"]}
        known |= self.outputs | _OBSERVABILITY_PARAMETERS
        url = self.upload(OBSERVABILITY)
        asked = self.client("cloudformation").validate_template(TemplateURL=url)["Parameters"]
        names = [parameter["ParameterKey"] for parameter in asked]
        self._create(f"{STACK_NAME}-observability", OBSERVABILITY, {n: known[n] for n in names if n in known})

    def _create(self, name: str, template: Path, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Create a stack and return its description. Raises StackError."""
        cloudformation = self.client("cloudformation")
        cloudformation.create_stack(
            StackName=name,
            TemplateURL=self.upload(template),
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        )
        deadline = time.monotonic() + _SECONDS_TO_CREATE
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        while stack["StackStatus"].endswith("_IN_PROGRESS") and time.monotonic() < deadline:
            time.sleep(0.02)
            stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        if stack["StackStatus"] != "CREATE_COMPLETE":
            events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
            causes = [
                e for e in events if e["ResourceStatus"] == "CREATE_FAILED"
            ]  # newest first, so the first cause is the last one
            cause = f"{causes[-1]['LogicalResourceId']}: {causes[-1]['ResourceStatusReason']}" if causes else "too slow"
            raise StackError(f"{template.name} ended as {stack['StackStatus']}; fix {cause}")
        return dict(stack)

    def _settle_mappings(self) -> None:
        # From a template, MiniStack 1.5.33 keeps MaximumConcurrency as a string, which its poller cannot compare, and
        # reports every mapping as enabled. Setting both again through its API corrects this.
        client = self.client("lambda")
        for mapping in client.list_event_source_mappings()["EventSourceMappings"]:
            client.update_event_source_mapping(
                UUID=mapping["UUID"],
                Enabled=self._parameters["MappingEnabled"] == "true",
                ScalingConfig=mapping.get("ScalingConfig", {}),
            )
