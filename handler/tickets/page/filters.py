"""The filters of the page: the query string of a URL, which every form and link of the page carries on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, get_args
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from enrichment.ticket import MAX_CREATED_AT, Sentiment
from handler.cli.options import unix_time
from handler.tickets.repository import URGENCIES, Selection

__all__ = ["SENTIMENTS", "Filters"]

SENTIMENTS: Final = get_args(Sentiment)
_MAX_LENGTH: Final = 300  # characters of a text filter
_DAY: Final = 86400


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters as the form shows them, and the `selection` that they mean. `problems` are lines for the user.

    `words` is a search by meaning, and `after` the cursor of an older page.
    """

    urgency: tuple[str, ...] = ()
    intent: str = ""
    sentiment: str = ""
    review: str = ""
    language: str = ""
    since: str = ""
    until: str = ""
    text: str = ""
    words: str = ""
    after: str = ""
    selection: Selection = field(default_factory=Selection, compare=False)
    problems: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, query: QueryParams) -> Filters:
        """The filters of a URL. A value that means nothing is left out, with a line in `problems`."""
        problems: list[str] = []

        def one_of(name: str, allowed: tuple[str, ...]) -> str:
            value = query.get(name, "")
            if value and value not in allowed:
                problems.append(f"{name}: {value[:40]!r} is none of {', '.join(allowed)}")
                return ""
            return value

        def time(name: str, whole_day: int) -> tuple[str, int | None]:
            value = query.get(name, "").strip()
            try:
                # A date without a time means its whole day.
                seconds = int(unix_time(value)) + whole_day * (len(value) == len("2026-01-31")) if value else None
            except (ValueError, OverflowError):
                seconds = -1
            if seconds is None or 0 <= seconds <= MAX_CREATED_AT:
                return value, seconds
            problems.append(f"{name}: {value[:40]!r} is neither a date like 2026-01-31 nor an age like 3d")
            return "", None

        urgencies = tuple(level for level in URGENCIES if level in query.getlist("urgency"))
        sentiment, review = one_of("sentiment", SENTIMENTS), one_of("review", ("yes", "no"))
        (since, begin), (until, end) = time("since", 0), time("until", _DAY - 1)
        intent, language, text, words = (
            query.get(name, "").strip()[:_MAX_LENGTH] for name in ("intent", "language", "text", "words")
        )
        selection = Selection(
            urgencies=urgencies or URGENCIES,
            intent=intent or None,
            sentiment=sentiment or None,
            needs_review={"yes": True, "no": False}.get(review),
            language=language.lower() or None,
            text=text or None,
            since=begin,
            until=end,
        )
        after = query.get("after", "")
        return cls(
            urgencies, intent, sentiment, review, language, since, until, text, words, after, selection, tuple(problems)
        )

    def query(self, **more: Any) -> str:
        """The query string, with further parameters: an empty string, or one that begins with a question mark."""
        pairs: Mapping[str, Any] = {name: getattr(self, name) for name in (*_PARAMETERS, "after")} | more
        text = urlencode({name: value for name, value in pairs.items() if value not in ("", None, ())}, doseq=True)
        return f"?{text}" if text else ""

    def without(self, name: str) -> Filters:
        """The same filters without one of them, on the first page."""
        changes: dict[str, Any] = {name: () if name == "urgency" else "", "after": ""}
        return replace(self, **changes)

    def in_force(self) -> list[tuple[str, str]]:
        """The names and values of the filters that are set."""
        found = [(name, getattr(self, name)) for name in _PARAMETERS]
        return [(name, " or ".join(value) if isinstance(value, tuple) else value) for name, value in found if value]


_PARAMETERS: Final = ("urgency", "intent", "sentiment", "review", "language", "since", "until", "text", "words")
