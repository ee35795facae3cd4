"""Templates: every text of a ticket is escaped, and freed from control characters and bidirectional controls."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2s
from importlib import resources
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from handler.aws.corrections import TASKS
from handler.cli.output import harmless, moment
from handler.tickets.page.filters import SENTIMENTS, Filters
from handler.tickets.repository import URGENCIES, Item

__all__ = ["FOLDER", "ROW_ATTRIBUTES", "known_labels", "page", "row", "row_key", "row_mark", "ticket_link"]

FOLDER: Final = Path(__file__).parent
ROW_ATTRIBUTES: Final = (
    *("ticket_id", "created_at", "subject", "summary", "language", "needs_review", "review_reasons"),
    *("corrections", *TASKS),
)
"""The attributes of an item that a row shows."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_NAME: Final = 300  # characters shown of a subject or an id


def known_labels(task: str) -> tuple[str, ...]:
    """The labels of the shipped bundle in their order; a bundle with labels of its own has others."""
    return {"intent": _intents(), "urgency": URGENCIES, "sentiment": SENTIMENTS}[task]


def page(template: str, status: int = 200, /, **context: Any) -> HTMLResponse:
    """A whole page."""
    return HTMLResponse(_environment().get_template(template).render(**context), status)


def row(item: Item, filters: Filters, cosine: float | None = None) -> str:
    """One row of a list, as HTML."""
    return str(_environment().get_template("row.html").render(item=item, filters=filters, cosine=cosine))


def row_key(item: Item) -> str:
    """What identifies a row."""
    return f"{item.created_at}/{item.ticket_id}"


def row_mark(item: Item) -> str:
    """What changes when the row does."""
    return blake2s(item.model_dump_json(include={*ROW_ATTRIBUTES}).encode(), digest_size=8).hexdigest()


def ticket_link(item: Item, filters: Filters, path: str = "/ticket", **more: Any) -> str:
    """A link to something of a ticket, which carries the list's filters on."""
    return path + filters.query(id=item.ticket_id, created_at=item.created_at, **more)


def _shown(value: Any) -> Any:
    # Markup is a str that the templates made.
    return harmless(value) if type(value) is str else value


def _short_time(seconds: int) -> str:
    try:
        found = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return str(seconds)
    this_year = found.year == datetime.now(UTC).year
    return f"{found:%d %b %H:%M}" if this_year else f"{found:%d %b %Y}"


def _name(label: str) -> str:
    """A label in words."""
    return label.replace("_", " ").lower()


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _versioned(file: str) -> str:
    """The address of a static file; it changes with the content."""
    return f"/static/{file}?{blake2s((FOLDER / 'static' / file).read_bytes(), digest_size=6).hexdigest()}"


@cache
def _intents() -> tuple[str, ...]:
    text = resources.files("enrichment").joinpath("taxonomy.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["intent"]["labels"])


@cache
def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        finalize=_shown,
        loader=FileSystemLoader(FOLDER / "templates"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"label": _name, "moment": moment, "short": _short, "short_time": _short_time}
    made.globals |= {
        "row_key": row_key,
        "row_mark": row_mark,
        "icon": _versioned("icon.svg"),
        "levels": URGENCIES,
        "script": _versioned("page.js"),
        "sentiments": SENTIMENTS,
        "style": _versioned("page.css"),
        "tasks": TASKS,
        "ticket_link": ticket_link,
    }
    return made
