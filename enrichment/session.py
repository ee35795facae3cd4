"""Creates all ONNX Runtime sessions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

# Since 1.29 the official builds for Linux send telemetry from the import on: uploads, a device id and a database under
# HOME (ONNX Runtime pull request 27379). This variable disables it if it is set before the import. The library's other
# modules therefore import `ort` from here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

__all__ = ["ParallelSession", "available_cores", "make_session", "ort", "tidy_run"]

# One memory arena for all sessions, which grows by the requested size. By default, each session has its own arena,
# which doubles when it is full; sessions mostly run one after the other, so that would waste memory.
ort.create_and_register_allocator(
    ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT),
    ort.OrtArenaCfg({"arena_extend_strategy": 1}),
)

Result = TypeVar("Result")

_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
# Tokens per run: more are not faster; with fewer, the overhead of operators dominates.
_RUN: Final = 128
_LARGE: Final = 2 * _RUN  # up to this length, the arena keeps the memory of a run


def available_cores() -> int:
    """Cores that this process may use: on Lambda 1 per 1,769 MB of memory, in a pod the limit of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return cores


def make_session(graph: Path, *, threads: int | None = None) -> ort.InferenceSession:
    """A CPU session for a graph, with `threads` threads per operator (None: all available cores)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # no warnings about unused initializers
    # Spinning idle threads use CPU time that Lambda bills and that the threads for S3 and DynamoDB need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Planning which buffers share memory takes time quadratic in the number of nodes, half of that to open the encoder.
    # The arena reuses buffers anyway: runs took as long and as much memory without the plan.
    options.enable_mem_reuse = False
    # The arena never shrinks, except after a run with the options of `tidy_run`.
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def tidy_run() -> ort.RunOptions:
    """Run options with which the arena releases memory that no run uses any more, such as that of larger batches."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class ParallelSession:
    """A graph that reads texts, on all cores: each core processes some of the texts, with one thread.

    Threads that share every operator wait for each other hundreds of times per run; threads with their own texts wait
    once. With two threads and ten tickets this took 0.72 to 0.80 of the time (`make bench-full`).
    """

    def __init__(self, graph: Path, *, threads: int | None = None) -> None:
        self.session = make_session(graph, threads=1)
        threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(threads, graph.stem) if threads > 1 else None

    def each(self, lengths: Sequence[int], run: Callable[[slice, ort.RunOptions | None], Result]) -> list[Result]:
        """The results of `run(slice, options)` for slices that cover all texts, in order.

        `lengths` are the numbers of tokens per text. A slice has one text, or several of the same length, as many as
        fit into 128 tokens. Padding would take time, and change the last digits of a result: sums of another length are
        added in another order.
        """
        slices = _slices(lengths)
        # If one run is large, all runs tidy up: only the last one to end finds unused memory.
        options = tidy_run() if max(lengths, default=0) > _LARGE else None

        def one(part: slice) -> Result:
            return run(part, options)

        if self._pool is None or len(slices) == 1:
            return [one(part) for part in slices]
        return list(self._pool.map(one, slices))


def _slices(lengths: Sequence[int]) -> list[slice]:
    slices: list[slice] = []
    begin = 0
    for length, texts in groupby(lengths):
        end, size = begin + len(list(texts)), max(1, _RUN // length)
        slices += [slice(at, min(at + size, end)) for at in range(begin, end, size)]
        begin = end
    return slices
