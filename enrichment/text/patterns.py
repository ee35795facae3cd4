"""Regular expressions that are compiled at their first use: together they would take a tenth of a cold start."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property

__all__ = ["Pattern"]


class Pattern:
    """A regular expression; every one in this package is linear in the text or reads a bounded part of it."""

    def __init__(self, source: str, flags: re.RegexFlag | int = 0) -> None:
        self._source = source
        self._flags = flags

    @cached_property
    def match(self) -> Callable[..., re.Match[str] | None]:
        """As re.Pattern.match."""
        return self._compiled.match

    @cached_property
    def search(self) -> Callable[..., re.Match[str] | None]:
        """As re.Pattern.search."""
        return self._compiled.search

    @cached_property
    def sub(self) -> Callable[..., str]:
        """As re.Pattern.sub."""
        return self._compiled.sub

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._source, self._flags)
