"""The alarms of both templates: when they fire, whom they notify, and their descriptions."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import get_args

import pytest

import handler.errors
from enrichment.errors import EnrichmentError
from enrichment.ticket import Priority
from tests.infrastructure.watched import OBSERVABILITY, REPO, TEMPLATE, alarmed, alarms, calculated

# The alarms that make CodeDeploy roll back, and one of the pipe of result events.
ROLLBACK = {name: alarm for name, alarm in alarms(TEMPLATE).items() if name.startswith("NewVersion")}
ALARMS = {**alarms(OBSERVABILITY), **alarms(TEMPLATE)}
PARAMETERS = {**OBSERVABILITY["Parameters"], **TEMPLATE["Parameters"]}
TOPIC = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
FUNCTION = TEMPLATE["Resources"]["EnrichmentFunction"]["Properties"]
URGENCIES = get_args(Priority)
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


def test_a_long_wait_in_the_queue_for_bulk_is_no_alarm() -> None:
    watched = {metric for alarm in ALARMS.values() for metric in alarmed(alarm)}
    values = {value for metric in watched for _, value in metric.dimensions}
    assert values >= {"${TicketQueue.QueueName}", "${DeadLetterQueue.QueueName}", "${BulkDeadLetterQueue.QueueName}"}
    assert "${BulkQueue.QueueName}" not in values
    assert [OBSERVABILITY["Parameters"][name]["Default"] for name in ("BulkQueueName", "BulkDlqName")] == ["none"] * 2


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
    prefix = "${EnrichmentFunction}-" if name in alarms(TEMPLATE) else "${AWS::StackName}-"
    assert ALARMS[name]["AlarmName"]["Fn::Sub"].startswith(prefix)


def test_only_resources_unsupported_by_the_emulator_are_optional() -> None:
    resources = {**TEMPLATE["Resources"], **OBSERVABILITY["Resources"]}
    conditions = {name: resources[name].get("Condition") for name in ALARMS}
    of_metric_math = {name for name in ALARMS if "Metrics" in ALARMS[name]} - ROLLBACK.keys()
    assert of_metric_math == {"FailedShareAlarm", "NewDeadLettersAlarm", "RejectedShareAlarm"}
    assert {name: found for name, found in conditions.items() if found} == {
        **dict.fromkeys(of_metric_math, "MetricMathOn"),
        **dict.fromkeys(("BulkDeadLettersAlarm", "BulkOldestDeadLetterAlarm"), "BulkOn"),
        "ResultEventsAlarm": "ResultEventsOn",
        **dict.fromkeys(ROLLBACK, "InSteps"),
    }
    assert PARAMETERS["MetricMathAlarms"]["Default"] == "true"
    assert PARAMETERS["Deployment"]["Default"] == "AllAtOnce"  # the emulator does not support CodeDeploy either


def test_gradual_deployment_is_rolled_back_by_alarms() -> None:
    (_, found, none) = FUNCTION["DeploymentPreference"]["Alarms"]["Fn::If"]
    assert (found, none) == ([{"Ref": name} for name in ROLLBACK], [{"Ref": "AWS::NoValue"}])
    assert len(ROLLBACK) == 4
    share, errors = ROLLBACK["NewVersionFailedShareAlarm"], ROLLBACK["NewVersionErrorsAlarm"]
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


def test_lost_events_raise_the_alarm() -> None:
    alarm = ALARMS["ResultEventsAlarm"]
    assert alarm["Dimensions"] == [{"Name": "QueueName", "Value": {"Fn::GetAtt": ["ResultEventsDlq", "QueueName"]}}]
    assert (alarm["Threshold"], alarm["Statistic"], alarm["EvaluationPeriods"]) == (0, "Maximum", 1)


# -- the label shift of a new version


def sums(name: str) -> dict[str, tuple[str, dict[str, str]]]:
    """The metrics of an alarm by id: name, and dimensions except the service."""
    stats = {entry["Id"]: entry["MetricStat"]["Metric"] for entry in ALARMS[name]["Metrics"] if "MetricStat" in entry}
    return {
        key: (
            metric["MetricName"],
            {
                pair["Name"]: "new" if isinstance(pair["Value"], dict) else pair["Value"]
                for pair in metric["Dimensions"]
                if pair["Name"] != "service"
            },
        )
        for key, metric in stats.items()
    }


def shift(name: str, new: Counter[str], old: Counter[str]) -> float:
    """The value of an alarm, from the labels (urgency and `review`) of two versions in one period."""
    formulas = {entry["Id"]: entry["Expression"] for entry in ALARMS[name]["Metrics"] if "Expression" in entry}
    values = {}
    for key, (metric, dimensions) in sums(name).items():
        counted = new if "version" in dimensions else new + old
        what = "review" if metric == "TicketsNeedingReview" else dimensions.get("urgency")
        values[key] = counted[what] if what else sum(counted[urgency] for urgency in URGENCIES)
    return calculated(formulas, "shift", values)


def labelled(tickets: int, shares: Mapping[str, float], review: float, rng: Random) -> Counter[str]:
    """Labels of tickets, drawn with these probabilities."""
    found = Counter(rng.choices(URGENCIES, [shares[urgency] for urgency in URGENCIES], k=tickets))
    found["review"] = sum(rng.random() < review for _ in range(tickets))
    return found


SHIFTS = ("NewVersionReviewShareAlarm", "NewVersionLabelShiftAlarm")
USUAL = {"critical": 0.05, "high": 0.25, "medium": 0.45, "low": 0.25}


@pytest.mark.parametrize("name", SHIFTS)
def test_shift_alarm_compares_both_versions_in_the_same_periods(name: str) -> None:
    stats = [entry["MetricStat"] for entry in ALARMS[name]["Metrics"] if "MetricStat" in entry]
    assert len(stats) <= 10  # of one alarm
    assert {(stat["Stat"], stat["Period"]) for stat in stats} == {("Sum", 300)}
    assert [entry["Id"] for entry in ALARMS[name]["Metrics"] if entry["ReturnData"]] == ["shift"]
    pairs = Counter(
        (metric, *((k, v) for k, v in dimensions.items() if k != "version"))
        for metric, dimensions in sums(name).values()
    )
    assert set(pairs.values()) == {2}, "each metric of the new version, and of all"
    assert ALARMS[name]["Threshold"] == {"Ref": "AlarmLabelShift"}


@pytest.mark.parametrize("name", SHIFTS)
def test_same_labels_do_not_roll_back(name: str) -> None:
    rng, limit = Random(7), PARAMETERS["AlarmLabelShift"]["Default"]
    # A tenth of little and of much traffic; a deployment has few periods.
    alarms_of = Counter(
        tickets
        for tickets in (1, 5, 20, 100, 1000)
        for _ in range(200)
        if shift(name, labelled(tickets, USUAL, 0.2, rng), labelled(9 * tickets, USUAL, 0.2, rng)) > limit
    )
    assert alarms_of.total() <= 5, alarms_of


def test_less_certain_version_rolls_back_and_the_alarm_returns_to_ok() -> None:
    rng, name, limit = Random(7), "NewVersionReviewShareAlarm", PARAMETERS["AlarmLabelShift"]["Default"]
    old = labelled(900, USUAL, 0.2, rng)
    series = [shift(name, labelled(100, USUAL, review, rng), old) for review in (0.2, 0.6, 0.6, 0.2, 0.0)]
    assert [value > limit for value in series] == [False, True, True, False, False], series


def test_version_with_other_labels_rolls_back_and_the_alarm_returns_to_ok() -> None:
    rng, name, limit = Random(7), "NewVersionLabelShiftAlarm", PARAMETERS["AlarmLabelShift"]["Default"]
    old = labelled(900, USUAL, 0.2, rng)
    everything_is_urgent = {"critical": 0.5, "high": 0.4, "medium": 0.05, "low": 0.05}
    one_label_for_all = {"critical": 0.0, "high": 0.0, "medium": 1.0, "low": 0.0}
    shares: list[dict[str, float]] = [USUAL, everything_is_urgent, one_label_for_all, USUAL]
    series = [shift(name, labelled(100, each, 0.2, rng), old) for each in shares]
    assert [value > limit for value in series] == [False, True, True, False], series


@pytest.mark.parametrize("name", SHIFTS)
def test_one_version_alone_has_no_shift(name: str) -> None:
    rng = Random(7)
    some = labelled(100, USUAL, 0.9, rng)
    assert shift(name, some, Counter()) == shift(name, Counter(), some) == shift(name, Counter(), Counter()) == 0


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
