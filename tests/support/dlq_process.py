"""Many processes of `dlq-replay`, forked from one that has imported it: this saves a second per process.

    python -m tests.support.dlq_process

reads a JSON object {"arguments", "environment"} per line, and writes two lines for each: the process id when the
command starts, and its exit code (negative: the signal that killed it) when it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from handler.dlq import command

REPO = Path(__file__).resolve().parents[2]


class Starter:
    """Starts the command, one process at a time, until the `with` block ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.dlq_process"],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start the command and return its process id."""
        assert self._process.stdin is not None
        print(json.dumps({"arguments": arguments, "environment": environment}), file=self._process.stdin, flush=True)
        return self._number()

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return self._number()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request["arguments"], request["environment"])
        _say(child)
        _say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _become(arguments: list[str], environment: dict[str, str]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.environ.update(environment)
    sys.argv = ["dlq-replay", *arguments]
    try:
        command.main()
    except SystemExit as ending:
        os._exit(ending.code if isinstance(ending.code, int) else 1)
    except BaseException:
        os._exit(3)
    os._exit(0)


if __name__ == "__main__":
    _main()
