"""The one place that makes ONNX Runtime sessions."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

__all__ = ["available_cores", "make_session"]


def available_cores() -> int:
    """Cores that this process may use: on Lambda a share of the memory setting, 1 per 1,769 MB."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def make_session(graph: Path, *, threads: int | None = None) -> ort.InferenceSession:
    """A CPU session for the graph at that path, with `threads` threads for one operator (None: all cores there are)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about unused initialisers are of no use to an operator
    # Idle threads that spin burn the very CPU share that Lambda bills and that the pool for S3 and DynamoDB needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps what it once had; freed after each run by the run option in the encoder.
    options.enable_cpu_mem_arena = True
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
