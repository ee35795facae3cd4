"""The alarms of both templates: when they fire, whom they notify, and their descriptions."""

from __future__ import annotations

import re
import tomllib

import pytest

import handler.errors
from enrichment.errors import EnrichmentError
from tests.infrastructure.watched import OBSERVABILITY, REPO, TEMPLATE, alarms, calculated

ROLLBACK = alarms(TEMPLATE)  # the alarms that make CodeDeploy roll back
ALARMS = {**alarms(OBSERVABILITY), **ROLLBACK}
PARAMETERS = {**OBSERVABILITY["Parameters"], **TEMPLATE["Parameters"]}
TOPIC = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
FUNCTION = TEMPLATE["Resources"]["EnrichmentFunction"]["Properties"]
SHARE = {entry["Id"]: entry for entry in ALARMS["FailedShareAlarm"]["Metrics"]}


def codes(error: type[EnrichmentError] = EnrichmentError) -> set[str]:
    assert handler.errors.__all__  # imported so that its subclasses exist
    return {error.code}.union(*(codes(child) for child in error.__subclasses__()))


@pytest.mark.parametrize("name", ALARMS)
def test_topic_is_notified_of_alarm_and_recovery(name: str) -> None:
    assert ALARMS[name]["AlarmActions"] == ALARMS[name]["OKActions"] == TOPIC
    assert ALARMS[name].get("ActionsEnabled", True) is True


def test_notification_is_off_without_a_topic() -> None:
    for template in (TEMPLATE, OBSERVABILITY):
        assert template["Parameters"]["AlarmTopicArn"]["Default"] == ""
        assert template["Conditions"]["HasAlarmTopic"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmTopicArn"}, ""]}]}


def test_shared_parameters_have_the_same_limits() -> None:
    same = TEMPLATE["Parameters"].keys() & OBSERVABILITY["Parameters"].keys()
    assert same == {"AlarmTopicArn", "AlarmFailedPercent", "Timeout", "MemorySize", "MaximumConcurrency"}
    for name in same:
        one, other = (
            {key: value for key, value in template["Parameters"][name].items() if key not in ("Default", "Description")}
            for template in (TEMPLATE, OBSERVABILITY)
        )
        assert one == other, name


def test_required_parameters_come_from_the_function_stack() -> None:
    required = {name for name, each in OBSERVABILITY["Parameters"].items() if "Default" not in each}
    assert required == {"FunctionName", "QueueName", "DlqName", "Timeout", "MemorySize", "MaximumConcurrency"}
    assert required <= TEMPLATE["Outputs"].keys() | TEMPLATE["Parameters"].keys()


@pytest.mark.parametrize("name", ALARMS)
def test_missing_data_does_not_alarm(name: str) -> None:
    assert ALARMS[name]["TreatMissingData"] == "notBreaching"
    assert ALARMS[name]["ComparisonOperator"] == "GreaterThanThreshold"
    periods = ALARMS[name]["EvaluationPeriods"]
    if isinstance(periods, dict):
        periods = min(row["Periods"] for row in OBSERVABILITY["Mappings"]["CrashLoop"].values())
    assert ALARMS[name].get("DatapointsToAlarm", 1) <= periods


@pytest.mark.parametrize("name", ALARMS)
def test_description_uses_existing_names(name: str) -> None:
    text = ALARMS[name]["AlarmDescription"]
    assert 100 < len(text) <= 1024
    assert set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", text)) <= {*PARAMETERS, "CodeDeploy"}
    assert set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text)) <= codes()
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(re.findall(r"\bdlq-\w+", text)) <= scripts.keys()


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_names_are_unique_in_an_account(name: str) -> None:
    # The names of stacks are unique, and the function's name begins with the prefix of its stack.
    prefix = "${EnrichmentFunction}-" if name in ROLLBACK else "${AWS::StackName}-"
    assert ALARMS[name]["AlarmName"]["Fn::Sub"].startswith(prefix)


def test_only_resources_unsupported_by_the_emulator_are_optional() -> None:
    resources = {**TEMPLATE["Resources"], **OBSERVABILITY["Resources"]}
    conditions = {name: resources[name].get("Condition") for name in ALARMS}
    of_metric_math = {name for name in ALARMS if "Metrics" in ALARMS[name]} - ROLLBACK.keys()
    assert of_metric_math == {"FailedShareAlarm", "NewDeadLettersAlarm", "RejectedShareAlarm"}
    assert {name: found for name, found in conditions.items() if found} == {
        **dict.fromkeys(of_metric_math, "MetricMathOn"),
        **dict.fromkeys(ROLLBACK, "InSteps"),
    }
    assert PARAMETERS["MetricMathAlarms"]["Default"] == "true"
    assert PARAMETERS["Deployment"]["Default"] == "AllAtOnce"  # the emulator does not support CodeDeploy either


def test_gradual_deployment_is_rolled_back_by_alarms() -> None:
    (_, found, none) = FUNCTION["DeploymentPreference"]["Alarms"]["Fn::If"]
    assert (found, none) == ([{"Ref": name} for name in ROLLBACK], [{"Ref": "AWS::NoValue"}])
    share, errors = ROLLBACK.values()
    assert share["Threshold"] == ALARMS["FailedShareAlarm"]["Threshold"]
    assert [entry.get("Expression") for entry in share["Metrics"]] == [
        entry.get("Expression") for entry in ALARMS["FailedShareAlarm"]["Metrics"]
    ]
    version = {"Fn::Sub": "${EnrichmentFunction.Version.Version}"}
    metrics = [entry["MetricStat"] for entry in share["Metrics"] if "MetricStat" in entry]
    dimensions = [metric["Metric"]["Dimensions"] for metric in metrics] + [errors["Dimensions"]]
    assert [found[-1]["Value"] for found in dimensions] == [version] * 5
    # The shortest step, in which a bad version gets a tenth of the tickets, takes one minute.
    assert {metric["Period"] for metric in metrics} == {errors["Period"]} == {60}


def test_deployment_types_are_mapped() -> None:
    steps = PARAMETERS["Deployment"]["AllowedValues"]
    in_steps = {name: {"InSteps": str(name != "AllAtOnce").lower()} for name in steps}
    assert TEMPLATE["Mappings"]["Deployments"] == in_steps
    assert FUNCTION["DeploymentPreference"]["Enabled"] == {
        "Fn::FindInMap": ["Deployments", {"Ref": "Deployment"}, "InSteps"]
    }


def test_one_dlq_message_raises_the_alarm() -> None:
    alarm = ALARMS["DeadLettersAlarm"]
    assert (alarm["Threshold"], alarm["Statistic"], alarm["EvaluationPeriods"]) == (0, "Maximum", 1)


def test_one_crash_does_not_raise_the_age_alarm() -> None:
    assert ALARMS["OldestTicketAlarm"]["Threshold"] == {"Ref": "AlarmAgeSeconds"}
    timeout, window = int(PARAMETERS["Timeout"]["Default"]), int(PARAMETERS["BatchWindow"]["Default"])
    visibility = TEMPLATE["Mappings"]["Visibility"][str(timeout)][str(window)]
    assert PARAMETERS["AlarmAgeSeconds"]["Default"] > 2 * visibility
    # An older ticket has left the queue.
    assert (
        PARAMETERS["AlarmAgeSeconds"]["MaxValue"]
        <= TEMPLATE["Resources"]["TicketQueue"]["Properties"]["MessageRetentionPeriod"]
    )


def test_duration_alarm_fires_before_the_timeout() -> None:
    alarm = ALARMS["DurationAlarm"]
    assert alarm["Threshold"] == {"Fn::FindInMap": ["SlowBatch", {"Ref": "Timeout"}, "Milliseconds"]}
    assert alarm["ExtendedStatistic"] == "p99"
    limits = OBSERVABILITY["Mappings"]["SlowBatch"]
    assert limits == {s: {"Milliseconds": 800 * int(s)} for s in PARAMETERS["Timeout"]["AllowedValues"]}


@pytest.mark.parametrize(
    ("done", "skipped", "rejected", "failed", "percent"),
    [(0, 0, 0, 0, 0), (100, 0, 0, 0, 0), (0, 0, 0, 3, 100), (14, 1, 1, 4, 20), (0, 0, 9, 1, 10)],
)
def test_share_of_failed_tickets(done: int, skipped: int, rejected: int, failed: int, percent: float) -> None:
    formulas = {name: entry["Expression"] for name, entry in SHARE.items() if "Expression" in entry}
    values = {"done": done, "skipped": skipped, "rejected": rejected, "failed": failed}
    assert calculated(formulas, "share", values) == pytest.approx(percent)


def test_share_alarm_compares_sums_of_the_same_period() -> None:
    assert [name for name, entry in SHARE.items() if entry["ReturnData"]] == ["share"]
    assert ALARMS["FailedShareAlarm"]["Threshold"] == {"Ref": "AlarmFailedPercent"}
    parts = {name: entry["MetricStat"] for name, entry in SHARE.items() if "MetricStat" in entry}
    assert {name: part["Metric"]["MetricName"].removeprefix("Tickets").lower() for name, part in parts.items()} == {
        name: name for name in ("done", "skipped", "rejected", "failed")
    }
    assert {(part["Stat"], part["Period"]) for part in parts.values()} == {("Sum", 300)}


def test_topic_parameter_must_be_an_sns_arn() -> None:
    pattern = PARAMETERS["AlarmTopicArn"]["AllowedPattern"]
    good = ["", "arn:aws:sns:eu-central-1:123456789012:on-call", "arn:aws-us-gov:sns:us-gov-west-1:123456789012:a_b"]
    bad = ["on-call", "arn:aws:sqs:eu-central-1:123456789012:on-call", "arn:aws:sns:eu-central-1:123456789012:a.fifo"]
    assert [value for value in good + bad if re.fullmatch(pattern, value)] == good
