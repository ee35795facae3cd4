"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

# Since 1.29 the official builds for Linux report to their maker from their import on: an upload, a device id and a
# database under HOME (pull request 27379 of ONNX Runtime). This stops all of it, if it comes before the import: the
# library's other modules take `ort` from here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

__all__ = ["available_cores", "make_session", "ort", "tidy_run"]


_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


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
    options.enable_cpu_mem_arena = True
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def tidy_run() -> ort.RunOptions:
    """Options of a run after which the session gives back what it holds, or what larger batches made it hold before."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
