"""`python -m enrichment.export compact` with custom labels and tickets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from enrichment import Enricher, EnrichmentData, RawTicket

ROOT = Path(__file__).parents[2]
TAXONOMY = """
[intent]
fallback = "other"
[intent.labels.parcel]
examples = ["Where is my parcel?", "The parcel is lost."]
cues = ["parcel", "deliver*"]
[intent.labels.refund]
examples = ["I want my money back."]
cues = ["refund*", "money back"]
[intent.labels.other]
examples = ["What are your opening hours?"]

[urgency]
fallback = "medium"
[urgency.labels.critical]
cues = ["outage"]
[urgency.labels.high]
cues = ["today"]
[urgency.labels.medium]
[urgency.labels.low]
cues = ["no rush"]

[sentiment]
fallback = "NEUTRAL"
[sentiment.labels.POSITIVE]
[sentiment.labels.NEGATIVE]
[sentiment.labels.NEUTRAL]

[lexicon]
positive = "good great lovely"
negative = "bad broken lost"
negators = "not no never"
intensifiers = "very so"
"""


def _own_tickets() -> list[dict[str, str]]:
    what = {
        "parcel": ["my parcel is lost", "the courier never came", "nothing was delivered", "the box went to Norway"],
        "refund": ["I want my money back", "refund the shoes, please", "you still owe me 40 euros", "no refund came"],
        "other": ["when do you open", "do you sell hats", "is there a shop in Graz", "are you hiring"],
    }
    how = {
        "critical": ("Outage everywhere", "all our shops stand still this minute"),
        "high": ("Today, please", "I need it today and cannot work without it"),
        "medium": ("", "some time this week would do"),
        "low": ("No rush", "no rush at all, just curious"),
    }
    moods = ["NEGATIVE", "NEUTRAL", "POSITIVE"]
    return [
        {
            "subject": subject,
            "body": f"{text}; {tail}.",
            "intent": intent,
            "urgency": urgency,
            "sentiment": moods[i % 3],
        }
        for intent, texts in what.items()
        for i, text in enumerate(texts)
        for urgency, (subject, tail) in how.items()
    ]


def test_bundle_from_own_labels_and_tickets(tmp_path: Path) -> None:
    taxonomy, tickets, out = tmp_path / "taxonomy.toml", tmp_path / "tickets.jsonl", tmp_path / "bundle"
    taxonomy.write_text(TAXONOMY)
    tickets.write_text("\n".join(map(json.dumps, _own_tickets())))
    out.mkdir()
    (out / "bundle.json").write_text("an older bundle")
    (out / "stale.bin").write_text("of the older bundle")
    command = [sys.executable, "-m", "enrichment.export", "compact", "--out", str(out)]
    done = subprocess.run(
        [*command, "--taxonomy", str(taxonomy), "--tickets", str(tickets)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == out
    assert {path.name for path in tmp_path.iterdir()} == {"taxonomy.toml", "tickets.jsonl", "bundle"}
    enricher = Enricher.open(out, verify=True)
    assert set(enricher.bundle.manifest.files) | {"bundle.json"} == {path.name for path in out.iterdir()}
    assert enricher.bundle.manifest.verification["cosine_min"] >= 0.99
    parcel, refund, nothing = enricher.enrich(
        [
            RawTicket(ticket_id="1", customer_id="C", created_at=0, subject="", body="Has my parcel been delivered?"),
            RawTicket(ticket_id="2", customer_id="C", created_at=0, subject="", body="Where is my refund? Outage!"),
            RawTicket(ticket_id="3", customer_id="C", created_at=0, subject="", body=""),
        ]
    )
    assert isinstance(parcel, EnrichmentData)
    assert isinstance(refund, EnrichmentData)
    assert isinstance(nothing, EnrichmentData)
    assert (parcel.intent, refund.intent, nothing.intent) == ("parcel", "refund", "other")
    assert set(parcel.scores["intent"]) == {"parcel", "refund", "other"}
    assert set(parcel.scores["urgency"]) == {"critical", "high", "medium", "low"}
