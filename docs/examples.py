"""`make examples`: update what README.md shows of the product's output.

Two things are generated, so that they cannot differ from the product: the enriched ticket below the raw one, and
docs/images/demo.svg, a picture of `make demo` in a terminal. tests/infrastructure/test_docs.py compares the first.
"""  # noqa: INP001 - a script, not part of a package

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from enrichment import Enricher, enriched_json, parse_ticket
from enrichment.errors import EnrichmentError

REPOSITORY: Final = Path(__file__).resolve().parents[1]
README: Final = REPOSITORY / "README.md"
PICTURE: Final = REPOSITORY / "docs" / "images" / "demo.svg"
WIDTH: Final = 100  # columns of the terminal
DIMENSIONS: Final = 3  # of the embedding, in the README
SHOWN: Final = ("intent", "urgency", "sentiment")

_RAW: Final = re.compile(r"```json\n(\{.*?\n\})\n```", re.DOTALL)
_ENRICHED: Final = re.compile(r"(?<=```jsonc\n)\{.*?\n\}(?=\n```)", re.DOTALL)
# rich's template loads its font from a content delivery network. A README must not, and GitHub would block it.
_FONT_FACE: Final = re.compile(r"\s*@font-face \{\{.*?\}\}", re.DOTALL)
_FONTS: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def raw_ticket(readme: str) -> str:
    """The raw ticket in the README, as JSON."""
    (found,) = _RAW.findall(readme)
    return str(found)


def shown_ticket(readme: str) -> dict[str, Any]:
    """The enriched ticket as the README shows it, without the comments."""
    (found,) = _ENRICHED.findall(readme)
    return dict(json.loads(re.sub(r"\s*// .*|\s*/\*.*?\*/", "", found)))


def enriched_ticket(raw: str, bundle: Path) -> dict[str, Any]:
    """What the product makes of the ticket. Raises EnrichmentError."""
    ticket = parse_ticket(raw)
    (result,) = Enricher.open(bundle).enrich([ticket])
    if isinstance(result, EnrichmentError):
        raise result
    return dict(json.loads(enriched_json(ticket, result)))


def shortened(ticket: dict[str, Any]) -> str:
    """The part of an enriched ticket that fits into the README."""
    found = ticket["enrichment"]
    labels = [f'"{task}": "{found[task]}", "{task}_confidence": {found[f"{task}_confidence"]:.3f},' for task in SHOWN]
    numbers = ", ".join(f"{value:.4f}" for value in found["embedding"][:DIMENSIONS])
    lines = [
        *labels,
        f'"summary": {json.dumps(found["summary"], ensure_ascii=False)},',
        f'"needs_review": {json.dumps(found["needs_review"])},',
        f'"embedding": [{numbers} /* and {len(found["embedding"]) - DIMENSIONS} more */],',
        f'"model_version": "{found["model_version"]}" // and scores per label, language, processed_at',
    ]
    body = "\n".join(f"    {line}" for line in lines)
    head = f'"ticket_id": {json.dumps(ticket["ticket_id"])}, // and the other fields of the raw ticket'
    return f'{{\n  {head}\n  "enrichment": {{\n{body}\n  }}\n}}'


def demo_output(bundle: Path) -> str:
    """What `make demo` prints in a terminal, with its colours. Raises CalledProcessError."""
    command = [sys.executable, "-m", "handler.local.demo", "--bundle", str(bundle)]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    # Standard error holds the table that is redrawn while tickets arrive.
    return subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout  # noqa: S603 - our own module


def excerpt(lines: Sequence[Text]) -> list[Text]:
    """The demo's output with one example ticket instead of three, and without the line for programs."""
    ends = [number for number, line in enumerate(lines) if line.plain.startswith("╰")]
    people = [line for line in lines if not line.plain.startswith("{")]
    return [*people[: ends[0] + 1], Text("  …", style="dim"), *people[ends[-1] + 1 :]]


def picture(output: str) -> str:
    """An SVG of the output: a terminal with its own background, for light and dark pages."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "green"), ("make demo", "bold")))
    for line in excerpt([Text.from_ansi(line) for line in output.splitlines()]):
        console.print(line, no_wrap=True, crop=True)
    template = _FONT_FACE.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", _FONTS)
    return console.export_svg(title="ticket-enrichment", code_format=template, unique_id="demo")


def main() -> None:
    """Update the README and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    bundle = parser.parse_args().bundle
    readme = README.read_text(encoding="utf-8")
    block = shortened(enriched_ticket(raw_ticket(readme), bundle))
    README.write_text(_ENRICHED.sub(lambda _: block, readme), encoding="utf-8")
    PICTURE.write_text(picture(demo_output(bundle)), encoding="utf-8")


if __name__ == "__main__":
    main()
