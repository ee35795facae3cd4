"""How a bundle comes to stand at its place: built under a temporary name, opened and verified, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from enrichment.bundle import MANIFEST, Bundle
from enrichment.export.sources import ExportError

__all__ = ["Say", "placed", "quiet", "write_manifest"]

Say = Callable[[str], None]
"""Called with a line for people: what is done next."""


@contextlib.contextmanager
def placed(out: Path) -> Iterator[Path]:
    """A folder to build in. When the block ends well, its bundle is verified and takes the place of what is at `out`.

    When it does not, nothing is left of it. Raises ExportError where `out` holds something else than a bundle.
    """
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise ExportError(f"{out} exists and is no bundle; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        yield folder
        Bundle.open(folder, verify=True)
        _swap(folder, out, Path(scratch) / "older")


def _swap(folder: Path, out: Path, older: Path) -> None:
    """Puts a folder at `out`; what stood there comes back if that fails, or is interrupted."""
    try:
        if out.exists():
            out.rename(older)
        folder.rename(out)
    except BaseException:
        if older.exists() and not out.exists():
            older.rename(out)
        raise


def write_manifest(
    folder: Path,
    *,
    name: str,
    profile: str,
    models: Mapping[str, Any],
    verification: Mapping[str, Any],
    languages: Sequence[str] = ("en",),
    reference: Mapping[str, Any] | None = None,
) -> None:
    """Writes bundle.json for all files of the folder."""
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "name": name,
        "profile": profile,
        "files": {
            path.name: {"sha256": _sha256(path), "size": path.stat().st_size} for path in sorted(folder.iterdir())
        },
        "models": models,
        "languages": [*languages],
        "verification": verification,
        **({"reference": reference} if reference else {}),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' warnings and progress bars away from people, who can do nothing about them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    noise = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
