"""The alarms and the dashboard of the embedded stack name the deployed queues and the function."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from samtranslator.yaml_helper import yaml_parse

from handler.local.stack import STACK_NAME, TEMPLATE

if TYPE_CHECKING:
    from handler.local import EmbeddedStack

STACK = f"{STACK_NAME}-observability"


def test_alarms_use_deployed_resources(stack: EmbeddedStack) -> None:
    queues = {name: stack.outputs[name].rpartition("/")[2] for name in ("QueueUrl", "DlqUrl")}
    found = stack.client("cloudwatch").describe_alarms()["MetricAlarms"]
    values = {alarm["AlarmName"]: [each["Value"] for each in alarm["Dimensions"]] for alarm in found}
    function = stack.outputs["FunctionName"]
    assert values == {
        **{f"{STACK}-{name}": [queues["DlqUrl"]] for name in ("dead-letters", "oldest-dead-letter")},
        f"{STACK}-oldest-ticket": [queues["QueueUrl"]],
        **{f"{STACK}-{name}": [function] for name in ("errors", "crash-loop", "throttles", "duration")},
    }
    assert {alarm["TreatMissingData"] for alarm in found} == {"notBreaching"}
    (duration,) = (alarm for alarm in found if alarm["MetricName"] == "Duration")
    timeout = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))["Parameters"]["Timeout"]["Default"]
    assert duration["Threshold"] == 800 * int(timeout)


def test_deployed_dashboard_is_valid(stack: EmbeddedStack) -> None:
    cloudwatch = stack.client("cloudwatch")
    (entry,) = cloudwatch.list_dashboards()["DashboardEntries"]
    assert entry["DashboardName"] == f"{STACK}-us-east-1"
    body = cloudwatch.get_dashboard(DashboardName=entry["DashboardName"])["DashboardBody"]
    text = json.dumps(json.loads(body)["widgets"])
    # CloudWatch itself expands the rest when it draws a search.
    searched = ("ErrorType", "intent", "urgency", "sentiment", "language")
    assert set(re.findall(r"\$\{[^}]*\}", text)) == {f"${{PROP('Dim.{name}')}}" for name in searched}
    assert f'"QueueName", "{stack.outputs["DlqUrl"].rpartition("/")[2]}"' in body
