"""Warns, before anything is downloaded, if pip would take a CUDA build of torch, and says how to get a CPU build."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

WARNING = """\
warning: pip will take a CUDA build of torch here, with several gigabytes of packages that a CPU never uses.
         To avoid it, stop now (Ctrl-C), install the CPU build of {torch} into this environment as PyTorch's
         "Get started" page says for CPU, with {python} -m pip, and call make again.
"""


def main() -> None:
    """Ask pip what it would install. If it cannot say, the install itself will show why."""
    if importlib.util.find_spec("torch"):
        return
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    found = re.search(r'"(torch==[^"]+)"', project.read_text())
    if found is None:
        return
    dry_run = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "pip", "install", "--dry-run", "-q", "--report", "-", found[1]],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = [item["metadata"]["name"] for item in json.loads(dry_run.stdout)["install"]]
    except (ValueError, KeyError):
        return
    if any(name.startswith(("nvidia", "cuda")) for name in packages):
        sys.stderr.write(WARNING.format(torch=found[1], python=sys.executable))


if __name__ == "__main__":
    main()
