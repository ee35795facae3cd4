"""Ten tickets of the maximum size stay within the function's memory budget, with any content in unknown fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.characterization.harness import Product
from tests.regressions.children import run_python
from tests.regressions.marks import issue
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
@issue(16, "memory of unknown fields")
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
