"""The training data of the heads: the taxonomy, and labelled texts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from enrichment.classify import TASKS, Task
from enrichment.export.sources import ExportError
from enrichment.text import model_text
from enrichment.ticket import Priority, Sentiment

__all__ = ["OPINIONS", "TAXONOMY", "TICKETS", "Labelled", "Taxonomy", "read_labelled"]

TAXONOMY: Final = Path(__file__).parent.parent / "taxonomy.toml"
TICKETS: Final = Path(__file__).parent / "tickets.jsonl"
OPINIONS: Final = Path(__file__).parent / "opinions.jsonl"

_FIXED: Final[Mapping[Task, frozenset[str]]] = {
    "urgency": frozenset(get_args(Priority)),
    "sentiment": frozenset(get_args(Sentiment)),
}


@dataclass(frozen=True)
class Labelled:
    """A text, and per task the labels accepted for it, best first (not every text has labels for every task).

    `author` groups texts by the same writer or file: folds are split by it. None for texts that are only trained on.
    """

    text: str
    labels: Mapping[Task, Sequence[str]]
    author: str | None = None


@dataclass(frozen=True)
class Taxonomy:
    """Labels per task, their fallbacks, example sentences, and the word lists of the lexical features."""

    labels: Mapping[Task, list[str]]
    fallbacks: Mapping[Task, str]
    examples: Sequence[Labelled]
    lexicon: Mapping[str, list[str]]
    phrases: Mapping[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Taxonomy:
        """Reads a taxonomy from TOML. Raises ExportError, which names the table that is wrong."""
        try:
            data = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ExportError(f"{path} cannot be read as TOML: {error}") from error
        labels: dict[Task, list[str]] = {}
        fallbacks: dict[Task, str] = {}
        examples: list[Labelled] = []
        phrases: dict[str, list[str]] = {}
        for task in TASKS:
            table = _table(data, task, path)
            by_label = _table(table, "labels", path)
            labels[task] = sorted(by_label)
            fallbacks[task] = str(table.get("fallback", ""))
            if task in _FIXED and set(by_label) != _FIXED[task]:
                raise ExportError(f"{path}: the labels of {task} must be {', '.join(sorted(_FIXED[task]))}")
            if fallbacks[task] not in by_label:
                raise ExportError(f"{path}: [{task}] fallback = {fallbacks[task]!r} is none of its labels")
            for label in by_label:
                place = f"{task}.labels.{label}"
                phrases[f"{task}.{label}"] = _phrases(by_label[label], place, path)
                sentences = _texts(by_label[label], "examples", place, path)
                examples += [Labelled(text, {task: [label]}) for text in sentences]
        lexicon = {
            name: str(_table(data, "lexicon", path).get(name, "")).split()
            for name in ("positive", "negative", "negators", "intensifiers")
        }
        return cls(labels, fallbacks, examples, lexicon, phrases)


def read_labelled(path: Path, taxonomy: Taxonomy) -> list[Labelled]:
    """Reads labelled texts, one JSON object a line: `subject` and `body`, or `text`, and labels per task.

    A task's value is a label or a list of accepted labels, best first. Raises ExportError, which names the line.
    """
    result = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other separators of lines
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            text = item["text"] if "text" in item else model_text(item["subject"], item["body"])
            labels: dict[Task, list[str]] = {
                task: item[task] if isinstance(item[task], list) else [item[task]] for task in TASKS if task in item
            }
            author = item.get("author")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{path}, line {number}: not a labelled text ({error})") from error
        if not isinstance(text, str):
            raise ExportError(f"{path}, line {number}: not a labelled text (its text is none)")
        for task, accepted in labels.items():
            if unknown := [label for label in accepted if label not in taxonomy.labels[task]]:
                raise ExportError(f"{path}, line {number}: {task} {unknown[0]!r} is not in the taxonomy")
        result.append(Labelled(text, labels, author))
    return result


def _table(data: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = data.get(name)
    if not isinstance(table, Mapping):
        raise ExportError(f"{path}: the table [{name}] is missing")
    return table


def _phrases(table: object, place: str, path: Path) -> list[str]:
    """A label's phrases; taxonomies that were written before November 2026 call them `cues`."""
    name = "cues" if isinstance(table, Mapping) and "cues" in table else "phrases"
    return _texts(table, name, place, path)


def _texts(table: object, name: str, place: str, path: Path) -> list[str]:
    found = table.get(name, []) if isinstance(table, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ExportError(f"{path}: [{place}] must be a table whose {name} are a list of texts")
    return found
