"""Which messages of the dead-letter queue are meant."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError

from handler.cli.options import unix_time
from handler.replay.letter import Letter

__all__ = ["Choice", "ExpressionInvalid", "Match", "milliseconds"]


class ExpressionInvalid(ValueError):
    """A JMESPath expression, or a time, that means nothing."""


class Match:
    """A JMESPath expression on a letter; `misfits` counts those whose types it could not be evaluated on.

    It sees {"body", "attributes", "reason", "rejection", "message_id"}: the body as JSON where it is some, numbers as
    numbers, binary attributes in base64. Raises ExpressionInvalid, also from `takes`.
    """

    def __init__(self, expression: str) -> None:
        try:
            self._search = jmespath.compile(expression).search
            with suppress(JMESPathTypeError):  # nothing is there yet that could be of the right type
                self._search({"body": None, "attributes": {}})  # unknown functions are noticed only in a call
        except JMESPathError as error:
            raise ExpressionInvalid(" ".join(str(error).split())) from error
        self.misfits = 0
        self.misfit = ""

    def takes(self, letter: Letter) -> bool:
        """Whether the expression's result is true, as JMESPath has it: 0 is, nothing empty is."""
        try:
            found = self._search(_document(letter))
        except JMESPathTypeError as error:  # such as contains() on what is no text in this message
            self.misfits += 1
            # Not the error's own words: they quote the message.
            self.misfit = self.misfit or f"{error.function_name}() cannot take {error.actual_type}"
            return False
        except JMESPathError as error:  # in a branch that the first look did not reach
            raise ExpressionInvalid(" ".join(str(error).split())) from error
        return not (found is None or found is False or found in ("", [], {}))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a letter must be; times in milliseconds since 1970, each bound left open where it is None."""

    reasons: frozenset[str] = frozenset()
    match: Match | None = None
    before: int | None = None
    after: int | None = None
    message_ids: frozenset[str] = frozenset()

    @property
    def is_all(self) -> bool:
        """Whether every letter is meant."""
        return self == Choice()

    def takes(self, letter: Letter) -> bool:
        """Whether this letter is meant; one may be named by its own id, or by the one it had where it failed."""
        if self.message_ids and not self.message_ids & {letter.message_id, letter.source_id}:
            return False
        if self.reasons and letter.reason not in self.reasons:
            return False
        if not self.covers(letter.sent_at):
            return False
        return self.match is None or self.match.takes(letter)

    def covers(self, moment: int | None) -> bool:
        """Whether a moment (milliseconds) lies between the bounds; an unknown one does not, where there are some."""
        if self.before is None and self.after is None:
            return True
        return (
            moment is not None
            and (self.before is None or moment < self.before)
            and (self.after is None or moment >= self.after)
        )


def milliseconds(text: str, clock: Callable[[], float] = time.time) -> int:
    """As handler.cli.errors.unix_time, in milliseconds. Raises ExpressionInvalid."""
    try:
        return int(unix_time(text, clock) * 1000)
    except ValueError as error:
        raise ExpressionInvalid(str(error)) from error


def _document(letter: Letter) -> dict[str, Any]:
    try:
        body = json.loads(letter.body)
    except (ValueError, RecursionError):
        body = letter.body
    return {
        "body": body,
        "attributes": {name: _plain(value) for name, value in {**letter.attributes, **letter.own}.items()},
        "reason": letter.reason,
        "rejection": letter.rejection,
        "message_id": letter.message_id,
    }


def _plain(attribute: Mapping[str, Any]) -> Any:
    if "BinaryValue" in attribute:
        return base64.b64encode(attribute["BinaryValue"]).decode()
    text = attribute.get("StringValue", "")
    if attribute.get("DataType", "").startswith("Number"):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text
