"""The profile of a cold start: the steps from a new process to its first enriched ticket.

`python -m tests.bench.cold separate BUNDLE` runs each step by itself, one after the other; `together` builds the
handler as on Lambda, with models and AWS clients concurrently. Both print one JSON object of step -> [wall seconds, CPU
seconds]; the CPU time does not depend on other load and on the number of cores. `print_profile` runs both.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = 5
# The slowest imports in the order of the handler's; each excludes what the earlier ones already imported.
IMPORTS = {
    "numpy": ["numpy"],
    "pydantic": ["pydantic"],
    "tokenizers": ["tokenizers"],
    "boto3": ["boto3"],
    "Powertools": ["aws_lambda_powertools.metrics", "aws_lambda_powertools.utilities.batch"],
    "onnxruntime": ["onnxruntime"],
    "our own modules": ["enrichment", "handler.app", "handler.settings"],
}
SERVICES = ("s3", "dynamodb", "sqs")
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "ORT_DISABLE_TELEMETRY": "1",  # as enrichment.session sets it; here onnxruntime is imported earlier
}
STEPS: dict[str, tuple[float, float]] = {}
TICKET = {
    "ticket_id": "FIRST",
    "customer_id": "C-1",
    "created_at": 1_790_000_000,
    "subject": "Cannot export my invoices",
    "body": "Since Monday the export ends with an error. I tried two browsers and both give the same page.",
}


@contextmanager
def step(name: str) -> Iterator[None]:
    """Measure a step."""
    begin, cpu = time.perf_counter(), time.process_time()
    yield
    STEPS[name] = time.perf_counter() - begin, time.process_time() - cpu


def import_all() -> None:
    """Import everything that the handler needs."""
    for name, modules in IMPORTS.items():
        with step(f"import: {name}"):
            for module in modules:
                importlib.import_module(module)


def separate(bundle: Path, cache: str) -> None:
    """Run each step by itself."""
    import_all()
    import boto3.session
    from tokenizers import Tokenizer

    from enrichment import Bundle, Enricher, parse_ticket
    from enrichment.session import make_session
    from handler.aws.bundle_source import install_bundle

    with step("bundle: copy and verify"):
        folder = install_bundle(bundle.as_uri(), cache, lambda: None)
    files = Bundle.open(folder).manifest.files
    for graph in (name for name in files if name.endswith(".onnx")):
        with step(f"session: {graph}"):
            make_session(folder / graph)
    for tokenizer in (name for name in files if name.endswith("tokenizer.json")):
        with step(f"read {tokenizer}"):
            Tokenizer.from_file(str(folder / tokenizer))
    with step("Enricher.open: all of these again, and a warm-up run"):
        enricher = Enricher.open(folder)
    session = boto3.session.Session()
    for service in SERVICES:
        with step(f"client: {service}"):
            session.client(service)  # type: ignore[call-overload]  # overloads for literals only
    with step("first ticket"):
        enricher.enrich([parse_ticket(json.dumps(TICKET).encode())])


def together(bundle: Path, cache: str) -> None:
    """Import everything, then build the handler as on Lambda."""
    import_all()
    from handler.app import build
    from handler.settings import Settings

    with step("build: bundle, models and clients concurrently"):
        build(
            Settings(
                model_bundle=bundle.as_uri(),
                bundle_cache_dir=cache,
                raw_bucket="raw",
                enriched_bucket="enriched",
                table_name="tickets",
                queue_url="http://127.0.0.1:9/queue",
                dlq_url="http://127.0.0.1:9/dlq",
            )
        )


def print_profile(bundle: Path) -> None:
    """Run both alternately in separate processes and print medians in milliseconds."""
    runs: dict[str, list[Mapping[str, list[float]]]] = {"separate": [], "together": []}
    for _ in range(ROUNDS):
        for kind, found in runs.items():
            found.append(_run(kind, bundle))
    sys.stdout.write(f"cold start by step, medians of {ROUNDS} in ms (wall, CPU):\n")
    for kind, found in runs.items():
        names = [name for name in found[0] if kind == "separate" or not name.startswith("import: ")]
        for name in names:
            wall, cpu = (statistics.median(steps[name][i] for steps in found) * 1000 for i in (0, 1))
            sys.stdout.write(f"        {wall:6.0f} {cpu:6.0f}  {name}\n")
    sys.stdout.flush()


def _run(kind: str, bundle: Path) -> Mapping[str, list[float]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.cold", kind, str(bundle)],
        cwd=REPOSITORY,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"error: tests.bench.cold {kind} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        {"separate": separate, "together": together}[sys.argv[1]](Path(sys.argv[2]), scratch)
    sys.stdout.write(json.dumps(STEPS) + "\n")
