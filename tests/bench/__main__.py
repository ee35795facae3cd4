"""`make bench`: the budgets, measured as ratios within one run, because machines differ and their speed varies.

Each line has the comparison, the median ratio and the budget. The exit code is 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from enrichment import Bundle, Enricher
from enrichment.encoder import Encoder
from enrichment.text import model_text
from enrichment.ticket import RawTicket, ticket_from_object
from events.generator import TicketGenerator
from tests.bench.baseline import TorchBaseline, prepare
from tests.bench.cold import print_profile
from tests.support.shadow_bundles import write_shadow

REPOSITORY = Path(__file__).resolve().parents[2]
failed = False


def report(what: str, value: str, budget: str, ok: bool) -> None:
    """Print one result."""
    global failed  # noqa: PLW0603 - the script's exit status
    failed |= not ok
    sys.stdout.write(f"{'ok    ' if ok else 'MISSED'}  {what}: {value} (budget {budget})\n")
    sys.stdout.flush()


def main() -> int:
    """Run everything, the quick parts first."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    bundle = parser.parse_args().bundle.resolve()
    models = REPOSITORY / ".bundles" / "baseline"
    models.mkdir(parents=True, exist_ok=True)
    prepare(models)
    redaction()
    per_ticket(bundle)
    shadow(bundle)
    throughput(bundle, models)
    worker(bundle)
    memory(bundle)
    search(bundle)
    triage_page()
    start(bundle, models)
    print_profile(bundle)
    packages()
    return 1 if failed else 0


def redaction() -> None:
    """CPU time of redaction per kB of the labelled texts, which are far denser in findings than tickets are."""
    from enrichment.redaction import find

    texts = (REPOSITORY / "tests" / "unit" / "redaction_texts.tsv").read_text(encoding="utf-8")
    labels = re.compile(r"\[\[[A-Z]+:(.+?)\]\](?!\])")
    lines = labels.sub(r"\1", texts).splitlines()
    size = sum(len(line.encode()) for line in lines) / 1000
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        for line in lines:
            find(line)
        seconds.append(time.process_time() - begin)
    milliseconds = statistics.median(seconds) * 1000 / size
    report("redaction, per kB of the labelled texts", f"{milliseconds:.2f} ms", "under 1 ms", milliseconds < 1)


def tickets_of_eighty_tokens(encoder: Encoder, count: int) -> list[RawTicket]:
    """Generated tickets whose text has 60 to 100 tokens."""
    found: list[RawTicket] = []
    for made in TicketGenerator(seed=11, start=1_790_000_000):
        ticket = ticket_from_object(made)
        if 60 <= encoder.count_tokens(f"{ticket.subject}. {ticket.body}") <= 100:
            found.append(ticket)
        if len(found) == count:
            return found
    raise AssertionError


def interleaved(*runs: Callable[[], object], rounds: int) -> list[float]:
    """Median seconds of each function, run alternately."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, times in zip(runs, seconds, strict=True):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in seconds]


def per_ticket(bundle: Path) -> None:
    """The whole enrichment of a batch of ten, compared with one plain pass of the encoder over the same texts."""
    opened = Bundle.open(bundle)
    enricher, encoder = Enricher.open(bundle, threads=2), Encoder.open(opened, threads=2)
    batch = tickets_of_eighty_tokens(encoder, 10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(opened.path("encoder.onnx"), options, providers=["CPUExecutionProvider"])
    rows = [
        [101, *tokens.ids.tolist(), 102] for tokens in encoder.tokenize([model_text(t.subject, t.body) for t in batch])
    ]
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    ours, bare = interleaved(
        lambda: enricher.enrich(batch),
        lambda: session.run(None, {"input_ids": ids, "attention_mask": mask}),
        rounds=30,
    )
    ratio = ours / bare
    report(
        "compact, a batch of 10, compared with one plain pass of its encoder",
        f"{ratio:.2f} times",
        "at most 2.5",
        ratio <= 2.5,
    )
    sys.stdout.write(f"        {ours * 100:.1f} ms per ticket\n")


def shadow(bundle: Path) -> None:
    """A batch of ten with a shadow bundle, of the same encoder and of another, compared with the batch without."""
    batch = tickets_of_eighty_tokens(Encoder.open(Bundle.open(bundle)), 10)
    with tempfile.TemporaryDirectory() as folder:
        shadows = [write_shadow(Path(folder, name), bundle, own_encoder=name == "other") for name in ("same", "other")]
        same, other = (Enricher.open(bundle, threads=2, shadow=each) for each in shadows)
        # In pairs: what runs after another encoder finds colder caches.
        with_same, alone = interleaved(
            lambda: same.enrich(batch), lambda: same.enrich(batch, with_shadow=False), rounds=40
        )
        with_other, without = interleaved(
            lambda: other.enrich(batch), lambda: other.enrich(batch, with_shadow=False), rounds=10
        )
    ratio = with_same / alone
    report(
        "compact, a batch of 10 with a shadow bundle of the same encoder, compared with none",
        f"{ratio:.3f} times",
        "under 1.05",
        ratio < 1.05,
    )
    sys.stdout.write(f"        with another encoder of the same size: {with_other / without:.2f} times\n")


def throughput(bundle: Path, models: Path) -> None:
    """Tickets per second compared with three models in torch, one ticket at a time (with an abstractive summary)."""
    import torch

    torch.set_num_threads(2)
    torch_baseline = TorchBaseline(models)
    enricher = Enricher.open(bundle, threads=2)
    batch = tickets_of_eighty_tokens(Encoder.open(Bundle.open(bundle)), 10)
    ours, theirs = interleaved(
        lambda: enricher.enrich(batch),
        lambda: torch_baseline.enrich(model_text(batch[0].subject, batch[0].body)),
        rounds=3,
    )
    ratio = theirs / (ours / 10)
    report(
        "compact, tickets per second, compared with the torch baseline",
        f"{ratio:.0f} times",
        "at least 15",
        ratio >= 15,
    )


def worker(bundle: Path) -> None:
    """Tickets per second of a worker on the embedded stack, compared with the library, and with the stack itself."""
    found = json_of("tests.bench.worker", "--bundle", str(bundle))
    ratio = found["worker"] / min(found["library"], found["emulator"])
    report(
        "compact, worker on the embedded stack, tickets per second, compared with the slower of library and stack",
        f"{ratio:.2f}",
        "at least 0.7",
        ratio >= 0.7,
    )
    for name in ("library", "emulator", "worker"):
        cpu = found[f"{name}_cpu_ms"]
        sys.stdout.write(f"        {name}: {found[name]:.0f} tickets per second, {cpu:.1f} ms of CPU per ticket\n")


def memory(bundle: Path) -> None:
    """Peak memory over 1,000 tickets."""
    metrics = json_of("tests.bench.memory", str(bundle))
    peak, growth = metrics["peak_mb"], metrics["after_1000"] / metrics["after_200"]
    report("compact, peak memory over 1,000 tickets", f"{peak:.0f} MB", "under 400 MB", peak < 400)
    report("  memory after 1,000 tickets compared with after 200", f"{growth:.2f} times", "at most 1.1", growth <= 1.1)


def triage_page() -> None:
    """CPU time of the page until the first byte of its list, with 10,000 tickets; the emulator is another process."""
    from handler.local import EmbeddedStack
    from handler.tickets.repository import TicketRepository
    from tests.support.page_tickets import made_up_tickets, made_up_write, seconds_per_list, store

    with EmbeddedStack() as stack:
        table, bucket = stack.outputs["TableName"], stack.outputs["EnrichedBucket"]
        dynamodb, s3 = stack.client("dynamodb"), stack.client("s3")
        tickets = made_up_tickets(10_000, newest=int(time.time()), days=30)
        store(dynamodb, s3, table, bucket, [], [made_up_write(ticket) for ticket in tickets])
        repository = TicketRepository(dynamodb, lambda: s3, table=table, bucket=bucket)
        milliseconds = seconds_per_list(repository) * 1000
    report("triage page, list of 10,000 tickets", f"{milliseconds:.0f} ms", "200 ms of its own", milliseconds <= 200)


def search(bundle: Path) -> None:
    """Recall, time and memory of searches among 100,000 vectors in SQLite, and the time to group them."""
    with tempfile.TemporaryDirectory() as folder:
        built = json_of("tests.bench.search", "build", str(bundle), folder)
        found = json_of("tests.bench.search", "query", str(bundle), folder)
    for what in ("words", "tickets"):
        recall = found[f"recall_{what}"]
        report(f"search of 100,000 vectors by {what}, recall@10", f"{recall:.3f}", "at least 0.95", recall >= 0.95)
    cpu, elapsed, peak = found["milliseconds"], found["elapsed_milliseconds"], found["peak_mb"]
    report("  median CPU time with the encoder", f"{cpu:.0f} ms (elapsed: {elapsed:.0f} ms)", "under 100 ms", cpu < 100)
    report("  peak memory with the encoder", f"{peak:.0f} MB", "under 500 MB", peak < 500)
    sys.stdout.write(f"        built in {built['build']:.0f} s, grouped in {built['duplicates']:.0f} s\n")


def start(bundle: Path, models: Path) -> None:
    """Process start to the first ticket, compared with importing and loading the torch baseline; medians of five."""
    seconds: dict[str, list[float]] = {"library": [], "handler": [], "demo": []}
    steps: dict[str, list[dict[str, float]]] = {"library": [], "handler": []}
    for _ in range(5):
        for kind in ("library", "handler"):
            begin = time.perf_counter()
            steps[kind].append(json_of("tests.bench.start", kind, str(bundle)))
            seconds[kind].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        json_of("tests.bench.baseline", str(models))
        seconds["demo"].append(time.perf_counter() - begin)
    torch_baseline = statistics.median(seconds["demo"])
    for kind, share in (("library", 1 / 4), ("handler", 1 / 3)):
        ratio = statistics.median(seconds[kind]) / torch_baseline
        report(
            f"compact, start to first ticket, {kind}, compared with loading the torch baseline",
            f"{ratio:.3f}",
            f"at most {share:.3f}",
            ratio <= share,
        )
        for name in steps[kind][0]:
            sys.stdout.write(f"        {name}: {statistics.median(s[name] for s in steps[kind]) * 1000:.0f} ms\n")


def packages() -> None:
    """Size of the function's installed packages."""
    with tempfile.TemporaryDirectory() as target:
        constraints = str(REPOSITORY / "deploy" / "constraints.txt")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", target, "-c", constraints]
        subprocess.run(
            [*pip, f"{REPOSITORY}[lambda]"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        size = sum(path.lstat().st_size for path in Path(target).rglob("*") if path.is_file()) / 1e6
    report("the function's installed packages", f"{size:.0f} MB", "under 250 MB", size < 250)


def json_of(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this folder in a separate process; the last line of its output is a JSON object."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"error: {module} failed:\n{done.stderr}")
    lines = done.stdout.strip().splitlines()
    return dict(json.loads(next(line for line in reversed(lines) if line.startswith("{"))))


if __name__ == "__main__":
    sys.exit(main())
