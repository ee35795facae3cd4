"""The model bundle: a directory with `bundle.json` and the files it lists. Opens, verifies and installs bundles."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from enrichment.errors import BundleCorrupt, BundleInvalid, BundleMissing
from enrichment.manifest import MANIFEST, FileSpec, Manifest, read_manifest

__all__ = ["MANIFEST", "Bundle", "install"]

# Bytes that are copied at once. Each piece gives the interpreter's lock away three times, and then waits for it.
_CHUNK: Final = 16 << 20
_installing: Final = threading.Lock()


class Bundle:
    """An open bundle: its directory, manifest and digest."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest

    @property
    def version(self) -> str:
        """`<name>@<first 12 digits of the digest>`, the `model_version` of an enriched ticket."""
        return self.manifest.version(self.digest)

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> Bundle:
        """Reads the manifest and checks the presence and size of every file; with `verify` also every hash.

        Raises BundleMissing, BundleInvalid or BundleCorrupt; the message names the file and the remedy.
        """
        folder = Path(folder)
        try:
            raw = (folder / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleMissing(
                f"{folder} holds no {MANIFEST}; build a bundle with `python -m enrichment.export compact --out DIR`"
            ) from error
        manifest, digest = read_manifest(raw, str(folder))
        bundle = cls(folder, manifest, digest)
        for name, spec in manifest.files.items():
            bundle._check(name, spec, verify=verify)
        return bundle

    def path(self, name: str) -> Path:
        """The path of a file. Raises BundleInvalid if the manifest does not list it."""
        if name not in self.manifest.files:
            raise BundleInvalid(
                f"{self.folder / MANIFEST} uses the file {name}, but does not list it; rebuild the bundle"
            )
        return self.folder / name

    @contextmanager
    def opening(self, what: str) -> Iterator[None]:
        """Converts any exception in the block to BundleInvalid; `what` is being opened."""
        try:
            yield
        except BundleInvalid:
            raise
        except Exception as error:  # ONNX Runtime and tokenizers raise their own types, some of them plain Exception
            raise BundleInvalid(f"{self.folder}: {what} cannot be opened: {error}; rebuild the bundle") from error

    def _check(self, name: str, spec: FileSpec, *, verify: bool) -> None:
        path = self.folder / name
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise BundleCorrupt(f"{path} is missing; copy or build the bundle again") from error
        if size != spec.size:
            raise BundleCorrupt(f"{path} has {size} bytes instead of {spec.size}; copy or build the bundle again")
        if verify:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != spec.sha256:
                    raise BundleCorrupt(f"{path} differs from its sha256; copy or build the bundle again")


def install(
    open_file: Callable[[str], BinaryIO], cache: Path | str, *, place: str, expected_digest: str | None = None
) -> Path:
    """Copies a bundle to `<cache>/<digest>` and returns that directory; does nothing if it already exists.

    `open_file(name)` returns a stream of a file of the source, `place` names the source in errors. Files are copied to
    a temporary directory and hashed during the copy; the directory is then renamed. A partial copy is therefore never
    opened, and of two concurrent copies one wins. Raises BundleInvalid, also if the digest is not the expected one, or
    BundleCorrupt.
    """
    cache = Path(cache)
    with open_file(MANIFEST) as stream:
        raw = stream.read()
    manifest, digest = read_manifest(raw, place)
    if expected_digest not in (None, digest):
        raise BundleInvalid(
            f"{place} has the digest {digest} instead of the expected {expected_digest}; "
            "name the bundle that is expected, or expect this one"
        )
    target = cache / digest
    with _installing:
        if not target.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            _copy_all(open_file, manifest, raw, target, place)
    return target


def _copy_all(open_file: Callable[[str], BinaryIO], manifest: Manifest, raw: bytes, target: Path, place: str) -> None:
    with _scratch(target.parent, target.name) as scratch:
        for name, spec in manifest.files.items():
            with open_file(name) as source, (scratch / name).open("wb") as copy:
                _copy(source, copy, spec, f"{place}/{name}")
        (scratch / MANIFEST).write_bytes(raw)
        try:
            scratch.rename(target)
        except OSError:
            # Another process was faster, and verified its copy before the rename.
            if not target.is_dir():
                raise


@contextmanager
def _scratch(cache: Path, digest: str) -> Iterator[Path]:
    """A temporary directory next to the target. Deletes those of killed copies, which would fill /tmp."""
    # The host is part of the name, because pods that share a volume use the same few process ids.
    part = f"{digest}.part-{platform.node()}-"
    for stale in cache.glob(f"{part}*"):
        pid = stale.name.rsplit("-", 1)[-1].split(".")[0]
        # A process copies once, so a directory with our own pid is from an earlier process in the same /tmp.
        if not pid.isdigit() or int(pid) == os.getpid() or not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{part}{os.getpid()}.", dir=cache))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _copy(source: BinaryIO, target: BinaryIO, spec: FileSpec, name: str) -> None:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
    if size != spec.size:
        raise BundleCorrupt(f"{name} has {size} bytes instead of {spec.size}; upload or build the bundle again")
    if digest.hexdigest() != spec.sha256:
        raise BundleCorrupt(f"{name} differs from its sha256; upload or build the bundle again")
