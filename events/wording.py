"""The template language of `templates.toml`: slots that are filled at random, and the styles of a message.

The header of `templates.toml` describes the language for its authors.
"""

import html
import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

_SLOT = re.compile(r"\{([^{}]*)\}")
# Empty slots leave spaces and blank lines behind. Log lines that are indented by two spaces or more are kept.
_GAPS = (
    (re.compile(r"(?<=\S) {2,}"), " "),
    (re.compile(r"^ (?! )| +$", re.MULTILINE), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
)


class Writer:
    """Fills the slots of one ticket's texts; a name has the same value throughout the ticket.

    Args:
        chance: The source of all random choices.
        names: What a slot can refer to: lists of texts, tables of labels, numbers, times.
        labels: The ticket's intent, kind, urgency and sentiment; a table of labels uses the first one that it contains.
        moment: When the ticket was created; times in the texts are earlier.
    """

    def __init__(
        self, chance: random.Random, names: Mapping[str, Any], labels: Sequence[str], moment: datetime
    ) -> None:
        self._chance, self._names, self._labels, self._moment = chance, names, labels, moment
        self._known: dict[str, str] = {}

    def write(self, text: str) -> str:
        """Return the text with its slots filled and gaps closed. Raises KeyError for an unknown name."""
        text = self._fill(text)
        for gap, filling in _GAPS:
            text = gap.sub(filling, text)
        return text.strip()

    def _fill(self, text: str) -> str:
        while slot := _SLOT.search(text):  # matches a slot without slots inside: the innermost is filled first
            text = text[: slot.start()] + self._choose(slot[1]) + text[slot.end() :]
        return text

    def _choose(self, slot: str) -> str:
        if "|" in slot:
            return self._chance.choice(slot.split("|"))
        name = slot.removeprefix("^")
        if name not in self._known:
            self._known[name] = self._value(self._names[name.partition(":")[0]])
        value = self._known[name]
        return value if name == slot else value[:1].upper() + value[1:]

    def _value(self, entry: Any) -> str:
        match entry:
            case [*texts]:
                return self._fill(self._chance.choice(texts))
            case {"hex": digits}:
                return f"{self._chance.getrandbits(4 * digits):0{digits}x}"
            case {"ago": [soonest, latest], "format": form}:
                return (self._moment - timedelta(seconds=self._chance.randint(soonest, latest))).strftime(form)
            case {"least": least, "most": most, "decimals": decimals}:
                return f"{self._chance.uniform(least, most):,.{decimals}f}"
            case {"least": least, "most": most}:
                return str(self._chance.randint(least, most))
            case _:
                label = next((label for label in self._labels if label in entry), None)
                return self._value(entry[label])


def _as_html(text: str) -> str:
    paragraphs = (part.replace("\n", "<br>") for part in html.escape(text, quote=False).split("\n\n"))
    return "<div>\n" + "\n".join(f"<p>{part}</p>" for part in paragraphs) + "\n</div>"


STYLES: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "casual": lambda text: text.lower().replace("'", ""),
    "shout": str.upper,
    "html": _as_html,
    "mojibake": lambda text: text.encode().decode("cp1252", errors="replace"),
}
"""Transformations of the finished text, by the name that a shape uses for them."""
