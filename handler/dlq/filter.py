"""Which DLQ messages a command selects.

A message is selected if it meets every given condition. A message that is not selected is not changed: the command
receives it once, keeps it in flight until the command ends, so that it is not received again, and then makes it
visible. Only its receive count grows, by one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError

from handler.dlq.errors import RequestInvalid
from handler.dlq.message import DlqMessage

__all__ = ["Expression", "Filter"]


class Expression:
    """The JMESPath expression of --match. Raises ValueError with a one-line message if it is invalid.

    It sees {"body", "attributes", "reason", "rejection", "message_id"}: the body parsed if it is JSON, numbers as
    numbers, binary attributes in base64. `type_errors` counts messages for which a function received a wrong type.
    """

    def __init__(self, text: str) -> None:
        try:
            self._search = jmespath.compile(text).search
            with suppress(JMESPathTypeError):  # in this empty document, a wrong type means nothing
                self._search({"body": None, "attributes": {}})  # finds unknown functions, which compile() does not
        except JMESPathError as error:
            raise ValueError(" ".join(str(error).split())) from error
        self.type_errors = 0
        self.type_error = ""

    def matches(self, message: DlqMessage) -> bool:
        """Whether the result is true as JMESPath defines it: not null, false or empty, but 0 is true."""
        try:
            found = self._search(_document(message))
        except JMESPathTypeError as error:  # such as contains() of a number
            self.type_errors += 1
            # Not the error's text: it quotes the message.
            self.type_error = self.type_error or f"{error.function_name}() does not accept {error.actual_type}"
            return False
        except JMESPathError as error:  # in a branch that was not evaluated before
            raise RequestInvalid(f"--match: {' '.join(str(error).split())}") from error
        return not (found is None or found is False or found in ("", [], {}))


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions on a message, all of which must be true; times in milliseconds since 1970. The default has none."""

    reasons: frozenset[str] = frozenset()
    expression: Expression | None = None
    before: int | None = None
    after: int | None = None
    message_ids: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether it selects every message."""
        return self == Filter()

    def selects(self, message: DlqMessage) -> bool:
        """Whether a message is selected; ids are compared with its id in the DLQ and in the queue where it failed."""
        return (
            (not self.message_ids or bool(self.message_ids & {message.message_id, message.source_id}))
            and (not self.reasons or message.reason in self.reasons)
            and self.includes_time(message.sent_at)
            and (self.expression is None or self.expression.matches(message))
        )

    def includes_time(self, time: int | None) -> bool:
        """Whether after <= time < before; an unknown time is included only if there are no bounds."""
        if time is None:
            return self.before is None and self.after is None
        return (self.before is None or time < self.before) and (self.after is None or time >= self.after)


def _document(message: DlqMessage) -> dict[str, Any]:
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        body = message.body
    attributes = {**message.attributes, **message.sender_attributes}
    return {
        "body": body,
        "attributes": {name: _value(attribute) for name, attribute in attributes.items()},
        "reason": message.reason,
        "rejection": message.rejection,
        "message_id": message.message_id,
    }


def _value(attribute: Mapping[str, Any]) -> Any:
    if "BinaryValue" in attribute:
        return base64.b64encode(attribute["BinaryValue"]).decode()
    text = attribute.get("StringValue", "")
    if attribute.get("DataType", "").startswith("Number"):
        for number in (int, float):
            with suppress(ValueError):
                return number(text)
    return text
