"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

# Since 1.29 the official builds for Linux report to their maker from their import on: an upload, a device id and a
# database under HOME (pull request 27379 of ONNX Runtime). This stops all of it, if it comes before the import: the
# library's other modules take `ort` from here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

__all__ = ["ParallelSession", "available_cores", "make_session", "ort", "tidy_run"]

# One arena for all sessions, that grows by what is asked for. Each would have its own, doubled whenever it is full: as
# sessions mostly run in turn, that is memory which the others could use.
ort.create_and_register_allocator(
    ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT),
    ort.OrtArenaCfg({"arena_extend_strategy": 1}),
)

Result = TypeVar("Result")

_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
# From here on more tokens in a run gain nothing; fewer leave part of the time to the overhead of operators.
_RUN: Final = 128
_LARGE: Final = 2 * _RUN  # what a run of so many tokens takes is worth keeping


def available_cores() -> int:
    """Cores that this process may use: on Lambda by its memory, 1 per 1,769 MB; in a pod by the limit of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return cores


def make_session(graph: Path, *, threads: int | None = None) -> ort.InferenceSession:
    """A CPU session for the graph at that path, with `threads` threads for one operator (None: all cores there are)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about unused initialisers are of no use to an operator
    # Idle threads that spin burn the very CPU share that Lambda bills and that the pool for S3 and DynamoDB needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps what it once had, until a run with the options of `tidy_run`.
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def tidy_run() -> ort.RunOptions:
    """Options of a run after which the arena gives back what no run uses: what larger batches made it hold before."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class ParallelSession:
    """A graph that reads texts, on all cores: every core runs some of the texts, with one thread.

    Threads that share each operator wait for each other at its end, some hundred times a run; those that share the
    texts do so once. With two threads and ten tickets that took 0.72 to 0.80 of the time (`make bench-full`).
    """

    def __init__(self, graph: Path, *, threads: int | None = None) -> None:
        self.session = make_session(graph, threads=1)
        threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(threads, graph.stem) if threads > 1 else None

    def each(self, lengths: Sequence[int], run: Callable[[slice, ort.RunOptions | None], Result]) -> list[Result]:
        """What `run` gives for slices that cover all texts, in order; it is called with options for the session.

        `lengths` are the texts' in tokens. A slice has one text, or so many that they fill 128 tokens at most when all
        are as long as the longest.
        """
        slices = _slices(lengths)
        # All runs beside a large one tidy up: only the last to end finds nothing in use.
        options = tidy_run() if max(lengths, default=0) > _LARGE else None

        def one(part: slice) -> Result:
            return run(part, options)

        if self._pool is None or len(slices) == 1:
            return [one(part) for part in slices]
        return list(self._pool.map(one, slices))


def _slices(lengths: Sequence[int]) -> list[slice]:
    slices: list[slice] = []
    begin = longest = 0
    for end, length in enumerate(lengths):
        longest = max(longest, length)
        if end > begin and (end + 1 - begin) * longest > _RUN:
            slices.append(slice(begin, end))
            begin, longest = end, length
    return [*slices, slice(begin, len(lengths))] if lengths else []
