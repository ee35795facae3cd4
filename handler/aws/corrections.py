"""Labels that people corrected, in the item of a ticket.

The item's labels are those in force: a person's where there is one, with the confidence 1, otherwise the model's. Its
attribute `corrections` maps each corrected task to

    label, by, at             what was decided, by whom (an ARN) and when (UTC, ISO 8601)
    predicted, confidence     what the model of the stored version says instead, and how certain it is
    uncertain                 whether the ticket was to be reviewed for this task, or for its language

A decision also ends the review: `review_reasons` loses the task, and `language` once all three tasks are decided;
`needs_review` says whether a reason is left.

`tickets correct` writes corrections; the function keeps them when it enriches the ticket again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["TASKS", "with_corrections"]

TASKS: Final = ("intent", "urgency", "sentiment")


def with_corrections(item: Mapping[str, Any], decisions: Mapping[str, Any]) -> dict[str, Any]:
    """An item with people's labels, all in DynamoDB's JSON. `decisions` maps tasks to label, by and at."""
    reasons = [reason["S"] for reason in item.get("review_reasons", {"L": []})["L"]]
    corrections = dict(item.get("corrections", {"M": {}})["M"])
    labels: dict[str, Any] = {}
    for task, decision in decisions.items():
        # Of a task that was corrected before, the item no longer has the prediction itself.
        predicted = (
            corrections[task]["M"]
            if task in corrections
            else {
                "predicted": item[task],
                "confidence": item.get(f"{task}_confidence", {"NULL": True}),
                "uncertain": {"BOOL": task in reasons or "language" in reasons},
            }
        )
        decided = {name: decision["M"][name] for name in ("label", "by", "at")}
        corrections[task] = {"M": {**predicted, **decided}}
        labels |= {task: decided["label"], f"{task}_confidence": {"N": "1"}}
    all_decided = corrections.keys() >= set(TASKS)
    left = [reason for reason in reasons if reason not in corrections and not (reason == "language" and all_decided)]
    event = {}
    if "event" in item:
        members = item["event"]["M"]
        review = {name: {"BOOL": name in left} for name in members["review_reasons"]["M"]}
        event = {"event": {"M": {**members, "review_reasons": {"M": review}}}}
    return {
        **item,
        **event,
        **labels,
        "corrections": {"M": corrections},
        "review_reasons": {"L": [{"S": reason} for reason in left]},
        "needs_review": {"BOOL": bool(left)},
    }
