"""Ten tickets of the maximum size stay within the function's memory budget, with any content in unknown fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.characterization.harness import Product
from tests.regressions.children import run_python
from tests.regressions.tickets import raw, record

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
