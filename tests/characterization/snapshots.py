"""Snapshots: JSON files for each case, split into results of the code and results of the models.

`behaviour` contains everything that does not depend on a model, and is compared strictly. `models` contains labels,
confidences, summaries and embeddings: texts and labels are compared exactly, numbers with a tolerance for other CPUs.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from datetime import datetime
from difflib import unified_diff
from operator import mul
from pathlib import Path
from typing import Any, Final, Literal

FOLDER: Final = Path(__file__).with_name("snapshots")
Part = Literal["behaviour", "models"]
# As in tests/cpus: kernels for AVX2, AVX-512 VNNI and NEON add in different orders.
SCORE: Final = 0.03
COSINE: Final = 0.999
HOUR: Final = 3600  # seconds
_UUID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)")
UNITS: Final = 1000  # an embedding is stored in thousandths, as integers


class Snapshots:
    """Compares results with the files, or rewrites the files of the parts to regenerate."""

    def __init__(self, regenerate: frozenset[Part]) -> None:
        self._regenerate = regenerate

    def check(self, name: str, part: Part, found: Any) -> None:
        """Compares a result with snapshots/PART/NAME.json. Raises AssertionError."""
        path = FOLDER / part / f"{name}.json"
        found = json.loads(json.dumps(found))  # tuples become lists, as in the file
        if part in self._regenerate:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(found) + "\n", encoding="utf-8")
            return
        assert path.is_file(), f"{path} is missing; run with --regenerate"
        expected = json.loads(path.read_text(encoding="utf-8"))
        if part == "behaviour":
            assert found == expected, _difference(expected, found)
        else:
            _close(found, expected, name)


def rounded(enrichment: Mapping[str, Any]) -> dict[str, Any]:
    """Model values as stored: with four decimals, and the embedding in thousandths."""
    return {
        name: [round(number * UNITS) for number in value] if name == "embedding" else _rounded(value)
        for name, value in enrichment.items()
    }


def without_times_and_ids(value: Any, environment: Mapping[str, str]) -> Any:
    """The value without current times, random ids and the resource names of this stack, which differ between runs."""
    if isinstance(value, Mapping):
        return {
            name: "an id" if name == "s3_version_id" else without_times_and_ids(item, environment)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_times_and_ids(item, environment) for item in value]
    if isinstance(value, str):
        return _plain(value, environment)
    return "just now" if isinstance(value, int) and _is_now(value / 1000) else value


def digits_as_zeros(text: str) -> str:
    """The format of a time, without its digits."""
    return re.sub("[0-9]", "0", text)


def in_any_order(values: list[Any]) -> list[Any]:
    """The values, sorted, so that their original order does not matter."""
    return sorted(values, key=lambda value: json.dumps(value, sort_keys=True))


def shape(value: Any) -> Any:
    """The types of a nested value instead of its contents: for results of the models."""
    if isinstance(value, Mapping):
        return {name: shape(value[name]) for name in value}
    if isinstance(value, list):
        return f"{len(value)} numbers" if value and all(isinstance(number, float) for number in value) else "list"
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "text"


def _plain(text: str, environment: Mapping[str, str]) -> str:
    if _UUID.fullmatch(text):
        return "an id"
    if re.fullmatch("[0-9]{13}", text) and _is_now(int(text) / 1000):
        return "just now"
    for name in ("DLQ_URL", "QUEUE_URL", "RAW_BUCKET", "ENRICHED_BUCKET"):
        text = text.replace(environment.get(name, name), name)
    return _ISO.sub(
        lambda m: digits_as_zeros(m[0]) if _is_now(datetime.fromisoformat(m[0]).timestamp()) else m[0], text
    )


def _is_now(seconds: float) -> bool:
    return abs(seconds - time.time()) < HOUR


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return {name: _rounded(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _close(found: Any, expected: Any, place: str) -> None:
    if place.endswith(".embedding"):
        lengths = math.hypot(*found), math.hypot(*expected)
        assert len(found) == len(expected)
        assert math.isclose(*lengths, rel_tol=0.01), f"{place}: lengths {lengths}"
        if all(lengths):
            cosine = sum(map(mul, found, expected)) / math.prod(lengths)
            assert cosine >= COSINE, f"{place}: cosine {cosine:.5f}"
    elif isinstance(expected, dict) and isinstance(found, dict):
        assert list(found) == list(expected), place
        for name in expected:
            if not isinstance(found[name], str) or found[name] not in _equally_likely(name, expected):
                _close(found[name], expected[name], f"{place}.{name}")
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            _close(*pair, f"{place}.{number}")
    elif isinstance(expected, float):
        assert abs(found - expected) <= SCORE, f"{place}: {found}, expected {expected}"
    else:
        assert found == expected, place


def _difference(expected: Any, found: Any) -> str:
    before, after = _text(expected).splitlines(), _text(found).splitlines()
    return "\n" + "\n".join(unified_diff(before, after, "snapshot", "found", lineterm=""))


def _equally_likely(task: str, expected: Mapping[str, Any]) -> list[str]:
    """The labels of a task whose scores differ by less than the difference between CPUs."""
    scores = expected.get("scores", {}).get(task, {})
    likely = [label for label, score in scores.items() if max(scores.values()) - score < 2 * SCORE]
    return likely if expected[task] in likely else []  # otherwise the ticket's priority was used


def _text(value: Any, indent: int = 0) -> str:
    """Indented JSON, with short values and embeddings on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    numbers = isinstance(value, list) and all(isinstance(item, int) for item in value)
    if not value or not isinstance(value, dict | list) or len(flat) + indent <= 110 or numbers:
        return flat
    names = (
        [f"{json.dumps(name, ensure_ascii=False)}: " for name in value]
        if isinstance(value, dict)
        else [""] * len(value)
    )
    items = value.values() if isinstance(value, dict) else value
    inner, (begin, end) = " " * (indent + 1), "{}" if isinstance(value, dict) else "[]"
    lines = [f"{inner}{name}{_text(item, indent + 1)}" for name, item in zip(names, items, strict=True)]
    return f"{begin}\n" + ",\n".join(lines) + f"\n{' ' * indent}{end}"
