"""`make bench-engines`: Ray Data, Spark and `--processes`, compared with plain processes that run at the same time.

A plain process reads its share of the tickets from a file and calls the library. All start at once; the throughput is
measured from the first opened bundle to the last ticket, and the time before is reported. `--rows` sets the number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from events.generator import TicketGenerator

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = REPOSITORY / "deploy" / "engines"
PROCESSES = 2

PLAIN = """
import sys, time
from enrichment import Enricher, enriched_json, parse_ticket
from itertools import islice
enricher = Enricher.open(sys.argv[1], threads=1)
begin = time.time()
with open(sys.argv[2], "rb") as source, open(sys.argv[3], "wb") as out:
    while lines := list(islice(source, 50)):
        tickets = [parse_ticket(line) for line in lines]
        for ticket, result in zip(tickets, enricher.enrich(tickets)):
            out.write(enriched_json(ticket, result) + b"\\n")
print(begin, time.time())
"""


def main() -> int:
    """Run the comparisons. The exit code is 1 if a budget is missed."""
    parser = argparse.ArgumentParser(prog="make bench-engines", description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--only", choices=("files", "ray", "spark"))
    options = parser.parse_args()
    bundle = str(Path(options.bundle).resolve())
    wanted = [options.only] if options.only else ["files", "ray", "spark"]
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_tickets(folder, options.rows)
        before = plain(folder, bundle, options.rows)
        for kind in wanted:
            # Between two runs of the plain processes, because the machine's speed varies.
            seconds, start_up = run(kind, folder, source, bundle, options.rows)
            after = plain(folder, bundle, options.rows)
            ratio = (before + after) / 2 / seconds
            budget = 0.95 if kind == "files" else 0.85
            missed |= ratio < budget
            print(  # noqa: T201 - a program
                f"{'ok    ' if ratio >= budget else 'MISSED'}  {kind}, {options.rows} rows, compared with {PROCESSES} "
                f"plain processes: {ratio:.2f} times (budget at least {budget}), after {start_up:.1f} s of start-up",
                flush=True,
            )
            before = after
    return int(missed)


def write_tickets(folder: Path, rows: int) -> Path:
    """A folder with 20 files for the engines, one file with all of it, and one file per plain process."""
    lines = [json.dumps(t).encode() + b"\n" for t in islice(TicketGenerator(seed=4, start=1_790_000_000), rows)]
    (folder / "parts").mkdir()
    for part in range(20):
        (folder / "parts" / f"{part:02}.jsonl").write_bytes(b"".join(lines[part::20]))
    for part in range(PROCESSES):
        (folder / f"plain-{part}.jsonl").write_bytes(b"".join(lines[part::PROCESSES]))
    (folder / "all.jsonl").write_bytes(b"".join(lines))
    return folder / "parts"


def plain(folder: Path, bundle: str, rows: int) -> float:
    """Seconds from the first opened bundle to the last ticket."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PLAIN, bundle, str(folder / f"plain-{part}.jsonl"), os.devnull],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for part in range(PROCESSES)
    ]
    times = [tuple(map(float, process.communicate()[0].split())) for process in running]
    seconds = max(end for _, end in times) - min(begin for begin, _ in times)
    print(f"        {PROCESSES} plain processes: {rows / seconds:.1f} tickets per second", flush=True)  # noqa: T201
    return seconds


def run(kind: str, folder: Path, source: Path, bundle: str, rows: int) -> tuple[float, float]:
    """Seconds of the run without its start-up, and of the start-up: those of the same run with one row."""
    seconds = []
    small = folder / "one"
    small.mkdir(exist_ok=True)
    first = (folder / "all.jsonl").open("rb").readline()
    for part in range(PROCESSES):  # so that each process opens the bundle
        (small / f"{part}.jsonl").write_bytes(first)
    (folder / "one.jsonl").write_bytes(first * PROCESSES)
    for case in ("one", "all"):
        out = folder / f"out-{kind}-{case}"
        places = [str(small if case == "one" else source), str(out), "--bundle", bundle]
        command, env = {
            "files": (
                ["-m", "enrichment", str(folder / f"{case}.jsonl"), "--out", f"{out}.jsonl", "--bundle", bundle],
                {},
            ),
            "ray": (
                [str(ENGINES / "ray_data.py"), *places, "--actors", str(PROCESSES)],
                {"RAY_USAGE_STATS_ENABLED": "0"},
            ),
            "spark": (
                [str(ENGINES / "spark.py"), *places],
                {
                    "PYSPARK_PYTHON": sys.executable,
                    "PYSPARK_SUBMIT_ARGS": f"--master local[{PROCESSES}] --conf spark.ui.enabled=false pyspark-shell",
                    "SPARK_LOCAL_IP": "127.0.0.1",
                },
            ),
        }[kind]
        processes = ["--processes", str(PROCESSES)] if kind == "files" else []
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command, *processes],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"error: {kind} failed:\n{done.stderr}")
        seconds.append(time.perf_counter() - begin)
    start_up, whole = seconds
    return whole - start_up, start_up


if __name__ == "__main__":
    sys.exit(main())
