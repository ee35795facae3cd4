"""The audit file of `tickets forget`: JSON lines that say what was forgotten, when and by whom, without naming it.

    {"time": ..., "event": "begin", "target": "ticket", "sha256": ..., "by": ...}
    {"time": ..., "event": "end", ..., "raw": 1, "enriched": 2, "correction": 0, "item": 1, "dlq": 0, "complete": true}

`sha256` is the hash of the id (handler.aws.forgetting.name_hash). A run that was killed has no `end`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

__all__ = ["append", "caller"]


def append(path: Path, event: str, fields: Mapping[str, Any]) -> None:
    """Appends one line, and returns when it is on the disk. Raises OSError."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": now, "event": event, **fields}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def caller(sts: Any) -> str | None:
    """The ARN of the identity that calls AWS; None if STS does not say."""
    try:
        return str(sts.get_caller_identity()["Arn"])
    except (BotoCoreError, ClientError):
        return None
