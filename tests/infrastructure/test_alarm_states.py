"""Every alarm fires for what it is meant for, does not fire for less, and returns to OK."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from tests.infrastructure.cloudwatch import changes, states
from tests.infrastructure.watched import OBSERVABILITY, REPO, TEMPLATE, alarms

ALARMS = {**alarms(OBSERVABILITY), **alarms(TEMPLATE)}
MINUTE, HOUR, DAY = 60, 3600, 86400
Series = dict[str, list[tuple[float, float]]]


def every(seconds: float, begin: float, end: float, value: float) -> list[tuple[float, float]]:
    """The same value from `begin` to `end`."""
    return [(begin + seconds * n, value) for n in range(int((end - begin) // seconds))]


def gauge(*steps: tuple[float, float], until: float) -> list[tuple[float, float]]:
    """A value per minute that changes at (seconds, value)."""
    ends = [seconds for seconds, _ in steps[1:]] + [until]
    return [
        point for (begin, value), end in zip(steps, ends, strict=True) for point in every(MINUTE, begin, end, value)
    ]


def outcomes(begin: float, end: float, **counts: float) -> Series:
    """What the function writes per minute, zeros included."""
    names = ("done", "skipped", "rejected", "failed")
    found = {f"Tickets{name.capitalize()}": every(MINUTE, begin, end, counts.get(name, 0)) for name in names}
    return {**found, "TicketsTotal": every(MINUTE, begin, end, sum(counts.values()))}


def joined(*parts: Series) -> Series:
    return {name: [point for part in parts for point in part.get(name, [])] for name in {n for p in parts for n in p}}


class Scenario(NamedTuple):
    """What goes wrong for how long, and what is harmless."""

    trouble: Series
    harmless: Series
    until: float = 3 * HOUR


WORKING = outcomes(0, HOUR, done=95, failed=5)
SCENARIOS = {
    "DeadLettersAlarm": Scenario(
        {"ApproximateNumberOfMessagesVisible": gauge((0, 0), (HOUR, 1), (2 * HOUR, 0), until=3 * HOUR)},
        {"ApproximateNumberOfMessagesVisible": gauge((0, 0), until=3 * HOUR)},
    ),
    "ResultEventsAlarm": Scenario(
        {"ApproximateNumberOfMessagesVisible": gauge((0, 0), (HOUR, 1), (2 * HOUR, 0), until=3 * HOUR)},
        {"ApproximateNumberOfMessagesVisible": gauge((0, 0), until=3 * HOUR)},
    ),
    # A flood of 300 messages, which nobody removes; before, the queue was so unused that SQS wrote no metrics.
    "NewDeadLettersAlarm": Scenario(
        {
            "ApproximateNumberOfMessagesVisible": gauge(
                *((HOUR + 5 * MINUTE * n, 60.0 * n) for n in range(6)), until=3 * HOUR
            ),
            "ApproximateNumberOfMessagesNotVisible": gauge((HOUR, 0), until=3 * HOUR),
        },
        # Somebody looks at 50 of 300 old messages and then replays some.
        {
            "ApproximateNumberOfMessagesVisible": gauge((-HOUR, 300), (HOUR, 250), (2 * HOUR, 280), until=3 * HOUR),
            "ApproximateNumberOfMessagesNotVisible": gauge((-HOUR, 0), (HOUR, 50), (2 * HOUR, 0), until=3 * HOUR),
        },
    ),
    "OldestDeadLetterAlarm": Scenario(
        {"ApproximateAgeOfOldestMessage": [(t, t) for t in range(0, 5 * DAY, 300)] + every(300, 5 * DAY, 6 * DAY, 0)},
        {"ApproximateAgeOfOldestMessage": [(t, t % (3 * DAY)) for t in range(0, 6 * DAY, 300)]},
        until=6 * DAY,
    ),
    "OldestTicketAlarm": Scenario(
        {"ApproximateAgeOfOldestMessage": gauge((0, 5), (HOUR, 1000), (2 * HOUR, 5), until=3 * HOUR)},
        # A container crashed twice with a message.
        {"ApproximateAgeOfOldestMessage": gauge((0, 5), (HOUR, 750), (2 * HOUR, 5), until=3 * HOUR)},
    ),
    "FailedShareAlarm": Scenario(
        joined(WORKING, outcomes(HOUR, 2 * HOUR, done=80, failed=20), outcomes(2 * HOUR, 3 * HOUR, done=100)),
        joined(WORKING, outcomes(HOUR, HOUR + 10 * MINUTE, failed=100), outcomes(HOUR + 10 * MINUTE, 3 * HOUR)),
    ),
    "RejectedShareAlarm": Scenario(
        joined(WORKING, outcomes(HOUR, 2 * HOUR, done=80, rejected=20), outcomes(2 * HOUR, 3 * HOUR, done=100)),
        # A batch without tickets, and one that consists of one rejected ticket.
        joined(outcomes(0, HOUR), outcomes(HOUR, HOUR + MINUTE, rejected=1), outcomes(2 * HOUR, 3 * HOUR, done=9)),
    ),
    "ErrorsAlarm": Scenario(
        {"Errors": joined({"E": every(20, HOUR, 2 * HOUR, 1)}, {"E": every(MINUTE, 2 * HOUR, 3 * HOUR, 0)})["E"]},
        {"Errors": [(HOUR, 1), (2 * HOUR, 1)]},
    ),
    "CrashLoopAlarm": Scenario({"Errors": every(361, HOUR, 2 * HOUR, 1)}, {"Errors": [(HOUR, 3), (2 * HOUR, 1)]}),
    "ThrottlesAlarm": Scenario({"Throttles": every(15, HOUR, 2 * HOUR, 4)}, {"Throttles": [(HOUR, 9), (2 * HOUR, 9)]}),
    "DurationAlarm": Scenario(
        {
            "Duration": every(10, 0, HOUR, 3000)
            + every(10, HOUR, 2 * HOUR, 50_000)
            + every(10, 2 * HOUR, 3 * HOUR, 3000)
        },
        {"Duration": every(10, 0, 3 * HOUR, 45_000)},
    ),
    "NewVersionFailedShareAlarm": Scenario(
        joined(outcomes(HOUR, HOUR + 5 * MINUTE, done=1, failed=1), outcomes(2 * HOUR, 3 * HOUR, done=5)),
        joined(outcomes(HOUR, 3 * HOUR, done=95, failed=5)),
    ),
    "NewVersionErrorsAlarm": Scenario({"Errors": [(HOUR, 1)]}, {"Errors": every(MINUTE, 0, 3 * HOUR, 0)}),
}
SCENARIOS |= {f"Bulk{name}": SCENARIOS[name] for name in ("DeadLettersAlarm", "OldestDeadLetterAlarm")}


def found(name: str, series: Series, scenario: Scenario, **parameters: Any) -> list[tuple[float, str]]:
    template = TEMPLATE if name in TEMPLATE["Resources"] else OBSERVABILITY
    defaults = {"Timeout": TEMPLATE["Parameters"]["Timeout"]["Default"], **parameters}
    used = {metric: points for metric, points in series.items() if metric in str(ALARMS[name])}
    return changes(states(ALARMS[name], template, used, until=scenario.until, **defaults))


def test_each_alarm_has_a_scenario() -> None:
    compared = {"NewVersionReviewShareAlarm", "NewVersionLabelShiftAlarm"}  # of two versions: test_alarms.py
    assert SCENARIOS.keys() == ALARMS.keys() - compared


@pytest.mark.parametrize("name", SCENARIOS)
def test_alarm_fires_and_returns_to_ok(name: str) -> None:
    scenario = SCENARIOS[name]
    assert [state for _, state in found(name, scenario.trouble, scenario)] == ["OK", "ALARM", "OK"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_alarm_does_not_fire_for_what_is_harmless(name: str) -> None:
    scenario = SCENARIOS[name]
    assert [state for _, state in found(name, scenario.harmless, scenario)] == ["OK"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_alarm_is_ok_without_any_data(name: str) -> None:
    assert [state for _, state in found(name, {}, SCENARIOS[name])] == ["OK"]


VISIBILITY = TEMPLATE["Mappings"]["Visibility"]


@pytest.mark.parametrize("timeout", VISIBILITY)
def test_crash_loop_fires_whatever_the_visibility_timeout_is(timeout: str) -> None:
    for window, visibility in VISIBILITY[timeout].items():
        for begin in (0, 150, 299):  # within a period of the alarm
            # The batch crashes once per visibility timeout, and is received at the end of a long poll.
            interval = visibility + 20
            crashes = {"Errors": every(interval, HOUR + begin, 8 * HOUR, 1)}
            scenario = Scenario(crashes, {}, until=13 * HOUR)
            changed = found("CrashLoopAlarm", crashes, scenario, Timeout=timeout)
            # It stays on while the loop lasts: people are notified once.
            assert [state for _, state in changed] == ["OK", "ALARM", "OK"], (window, begin)
            # It fires with the second crash, and one crash is no loop.
            assert HOUR + begin + interval < changed[1][0] <= HOUR + begin + interval + 300
            assert len(found("CrashLoopAlarm", {"Errors": [(HOUR + begin, 1)]}, scenario, Timeout=timeout)) == 1


def test_dead_letter_alarm_fires_again_for_the_next_problem() -> None:
    # The first flood is never replayed, and so the alarm on the number of messages stays on.
    visible = gauge((0, 0), (HOUR, 300), (4 * HOUR, 301), until=6 * HOUR)
    series = {"ApproximateNumberOfMessagesVisible": visible}
    scenario = Scenario(series, {}, until=6 * HOUR)
    changed = found("NewDeadLettersAlarm", series, scenario)
    assert [state for _, state in changed] == ["OK", "ALARM", "OK", "ALARM", "OK"]
    assert changed[2][0] - changed[1][0] <= 15 * MINUTE
    assert [state for _, state in found("DeadLettersAlarm", series, scenario)] == ["OK", "ALARM"]


def test_oldest_dead_letter_alarm_leaves_days_for_a_replay() -> None:
    queues = [
        TEMPLATE["Resources"][name]["Properties"]["MessageRetentionPeriod"]
        for name in ("TicketQueue", "DeadLetterQueue")
    ]
    parameter = OBSERVABILITY["Parameters"]["AlarmDeadLetterAgeSeconds"]
    # A message that SQS moves is deleted 14 days after it was first sent, and may have waited 7 days in the queue.
    assert parameter["Default"] + 2 * DAY < parameter["MaxValue"] <= queues[1] - queues[0]


def test_alarms_fit_cloudwatchs_limits() -> None:
    for name, alarm in ALARMS.items():
        stats = [entry["MetricStat"]["Period"] for entry in alarm.get("Metrics", ()) if "MetricStat" in entry]
        periods = alarm["EvaluationPeriods"]
        longest = (
            max(row["Periods"] for row in OBSERVABILITY["Mappings"]["CrashLoop"].values())
            if isinstance(periods, dict)
            else periods
        )
        # With periods under an hour, an alarm evaluates at most one day.
        assert longest * (stats or [alarm["Period"]])[0] <= DAY, name
        assert len(stats) <= 10, name
        assert len(alarm.get("Metrics", ())) - len(stats) <= 10, name


def test_runbook_has_a_row_for_each_alarm() -> None:
    text = (REPO / "docs" / "operations.md").read_text(encoding="utf-8").partition("\n## Alarms\n")[2]
    rows = re.findall(r"^\| `([a-z-]+)` \|", text.partition("\n## ")[0], re.MULTILINE)
    assert rows == [alarm["AlarmName"]["Fn::Sub"].partition("}-")[2] for alarm in ALARMS.values()]
