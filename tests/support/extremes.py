"""Extreme ticket texts, ten of each kind in one batch, through the whole handler in a separate process.

    python -m tests.support.extremes BUNDLE

prints one JSON object: per kind the outcomes of its tickets (done, or the rejection's code), the process's peak memory
in MB, and the outcome of a batch that ran out of time. Stores and queue are in memory; the AWS clients are created,
so that their memory counts.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import boto3

from enrichment import Enricher
from tests.support.fakes import FakeHarness, context, event, failed, notification, record, ticket

_ZALGO = "e" + "\u0301\u0316\u0334" * 30
BODIES: dict[str, str] = {
    "1 MB of prose": "The import of our customers fails, and nobody can say why. " * 16_900,
    "10,000 sentences": "The lamp is dead. " * 10_000,
    "10,000 lines": "".join(f"Line {number} of the log speaks of an error\n" for number in range(10_000)),
    "no sentence": "?! ... --- ;;; " * 1_000,
    "nothing but spaces": " \t\n\u00a0\u3000" * 10_000,
    "one word of 100,000 characters": "x" * 100_000,
    "one number of 100,000 digits": "7" * 100_000,
    "control characters": "".join(map(chr, range(32))) * 1_000,
    "emoji": "🔥👩‍👩‍👧‍👦🏳️‍🌈😡" * 5_000,
    "right to left": "\u202eلا أستطيع تسجيل الدخول. \u202cאני לא מצליח להתחבר! " * 3_000,
    "stacked accents": _ZALGO * 2_000,
    "characters without spaces": "我无法登录我的账户请尽快帮助我" * 15_000,
    "invisible characters": "\u200b\u200d\ufeff\u00ad" * 20_000,
    "brackets": "([{<" * 50_000,
}
RAW: dict[str, str] = {
    "a lone surrogate": '"before \\ud83d after"',
    "a lone surrogate in a name": '"x", "\\udc00": 1',
    "beyond 1 MiB": json.dumps("long " * 220_000),
}


def main(bundle: str) -> None:
    """Print the outcomes of each kind."""
    for service in ("s3", "sqs", "dynamodb"):
        boto3.client(service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    models = Enricher.open(bundle, threads=1)
    harness = FakeHarness(models)
    kinds = {kind: json.dumps(body, ensure_ascii=False) for kind, body in BODIES.items()} | RAW
    found = {kind: _outcomes(harness, body) for kind, body in kinds.items()}
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]  # the kernel always writes it
    sys.stdout.write(json.dumps({"outcomes": found, "peak_mb": peak, "out_of_time": _out_of_time(harness)}) + "\n")


def _outcomes(harness: FakeHarness, body: str) -> list[str]:
    """The outcomes of ten tickets with this body (as JSON)."""
    harness.source.objects.clear()
    harness.sink.objects.clear()
    for number in range(10):
        text = json.dumps(ticket(f"T-{number}", body="@@", created_at=len(body))).replace('"@@"', body)
        harness.source.put(f"{number}", text.encode())
    answer = harness.invoke(event(*(record(notification(f"{number}"), f"m-{number}") for number in range(10))))
    lines = [line for number in range(10) for line in answer.tickets(f"m-{number}")]
    return sorted({line.get("error_type") or line["outcome"] for line in lines})


def _out_of_time(harness: FakeHarness) -> dict[str, Any]:
    """Run a batch with half of the time that it needs, then run the failed messages again.

    Measures CPU time, which does not depend on other load on the machine.
    """
    bodies = "The import of our customers fails, and nobody can say why. " * 600
    records = [record(ticket(f"H-{n}", body=f"{n} {bodies}"), f"h-{n}") for n in range(10)]
    again = [record(ticket(f"A-{n}", body=f"{n} {bodies}"), f"h-{n}") for n in range(10)]
    begin = time.process_time()
    harness.invoke(event(*records))
    needed = time.process_time() - begin
    begin = time.process_time()

    def left() -> float:
        return begin + needed / 2 - time.process_time()

    with_little = harness.handler(event(*again), context(left))
    spare = left()
    names = {failure["itemIdentifier"] for failure in with_little["batchItemFailures"]}
    rest = harness.invoke(event(*(one for one in again if one["messageId"] in names)))
    stored = [f"A-{n}" for n in range(10) if harness.item(f"A-{n}", ticket()["created_at"]) is not None]
    return {
        "failed": sorted(names),
        "waits": sorted({harness.dead_letters.deferred[name] for name in names}),
        "spare_share": spare / (needed / 2),
        "failed_again": sorted(failed(rest)),
        "stored": stored,
    }


if __name__ == "__main__":
    main(sys.argv[1])
