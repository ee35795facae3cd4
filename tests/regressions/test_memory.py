"""Ten tickets of the maximum size stay within the function's memory budget, with any content in unknown fields."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from handler.local import EmbeddedStack
from tests.characterization.harness import Product
from tests.regressions.children import run_python
from tests.regressions.tickets import raw, record
from tests.support.waiting import eventually
from tests.support.workers import worker

MEGABYTES = 450
SIZE = 1024 * 1024

# The function as Lambda starts it, on the stack of the environment; the last line is its peak memory in MB.
_INVOKED = """
import re, sys, json
from pathlib import Path
from handler.main import lambda_handler

class Context:
    function_name = "f"
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:f"
    memory_limit_in_mb = "2048"
    aws_request_id = "r"
    def get_remaining_time_in_millis(self):
        return 100000
answer = lambda_handler(json.loads(sys.argv[1]), Context())
assert answer == {"batchItemFailures": []}, answer
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.last
def test_ten_large_tickets_stay_within_the_memory_budget(product: Product) -> None:
    product.empty()
    unit = '{"k":{}}'
    bucket = product.environment["RAW_BUCKET"]
    records: list[dict[str, Any]] = []
    for number in range(10):
        many = ",".join([unit] * ((SIZE - 400) // (len(unit) + 1)))
        body = json.dumps(raw(f"LARGE-{number}", "Meter", "The meter shows nothing."))[:-1] + f', "more": [{many}]}}'
        product.s3.put_object(Bucket=bucket, Key=f"large-{number}.json", Body=body.encode())
        place = {"bucket": {"name": bucket}, "object": {"key": f"large-{number}.json", "size": len(body)}}
        notification = {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": place}]}
        records.append(record(notification, f"m-{number}"))
    environment = product.environment | {"MALLOC_ARENA_MAX": "2"}
    done = run_python(_INVOKED, environment, json.dumps({"Records": records}))
    product.empty()
    if done.returncode != 0:
        pytest.fail(done.stderr[-600:])
    assert int(done.stdout.splitlines()[-1]) < MEGABYTES


@pytest.mark.last
def test_worker_with_several_batches_of_large_tickets_stays_within_the_memory_budget(
    stack: EmbeddedStack, bundle: Path, tmp_path: Path
) -> None:
    sqs, environment = stack.client("sqs"), stack.environment()
    sqs.purge_queue(QueueUrl=environment["QUEUE_URL"])
    # One character above U+FFFF makes Python use four bytes for each.
    text = "Die Anzeige grüßt \U0001f600 und zeigt nichts. " * 22_000
    for number in range(40):
        body = json.dumps(raw(f"LARGE-W-{number}", "Meter", text), ensure_ascii=False).encode()
        assert 0.8 * SIZE < len(body) < SIZE
        stack.client("s3").put_object(Bucket=environment["RAW_BUCKET"], Key=f"large-w-{number}.json", Body=body)
    environment |= {
        "MODEL_BUNDLE": bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
        "INTRA_OP_THREADS": "2",
        "MALLOC_ARENA_MAX": "2",
    }
    with worker(environment, tmp_path / "log") as running:
        eventually(lambda: running.log.read_text().count('"outcome":"done"') == 40, 240)
        status = Path(f"/proc/{running.child()}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    assert int(found[1]) // 1024 < MEGABYTES


# Ten tickets of a shape at a time, on stores in memory; the peak of each batch in MB is a line.
_SHAPES = """
import json, re, sys
from pathlib import Path
from enrichment import Enricher
from tests.support.fakes import FakeHarness, event, notification, record, ticket

SIZE = 1024 * 1024
enricher = Enricher.open(sys.argv[1], threads=2)

def repeated(part, before, after):
    return before + ",".join([part] * ((SIZE - len(before) - len(after)) // (len(part) + 1))) + after

def numbered(part, before, after):
    parts, size = [], len(before) + len(after)
    while size + len(part % len(parts)) + 1 < SIZE:
        parts.append(part % len(parts))
        size += len(parts[-1]) + 1
    return before + ",".join(parts) + after

head = json.dumps(ticket("@"))[:-1]
shapes = {f"field of {unit}": repeated(unit, head + ', "x": [', "]}") for unit in (
    '{"a":{}}', "[]", "0.5", '{"a":1,"b":2}'
)}
shapes["metadata"] = repeated('{"a":{}}', head + ', "metadata": {"x": [', "]}}")
shapes["tags"] = numbered('"%d"', head + ', "metadata": {"tags": [', "]}}")
shapes["many fields"] = numbered('"%x":1', head + ",", "}")
shapes["many names"] = numbered('"%x":{}', head + ', "x": {', "}}")
harness = FakeHarness(enricher)
for name, text in shapes.items():
    for n in range(10):
        harness.source.put(str(n), text.replace("@", f"{n}", 1).encode())
    Path("/proc/self/clear_refs").write_text("5")
    answer = harness.invoke(event(*(record(notification(str(n)), f"m-{n}") for n in range(10))))
    assert len(harness.sink.items) == 10, (name, answer.log)
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
    print(json.dumps([name, peak]), flush=True)
    harness.sink.items.clear()
    harness.sink.objects.clear()
"""


@pytest.mark.last
def test_no_shape_of_a_ticket_takes_more_memory(bundle: Path) -> None:
    done = run_python(_SHAPES, {"MALLOC_ARENA_MAX": "2"}, str(bundle))
    assert done.returncode == 0, done.stderr[-600:]
    peaks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(peaks) == 8
    assert [found for found in peaks if found[1] >= MEGABYTES] == []
