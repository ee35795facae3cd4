"""The model bundle: a folder with `bundle.json`, and the files that it names.

The manifest says of every file its size and sha256, of every model where it came from and how it is to be run. The
sha256 of the canonical manifest is the bundle's digest, so two bundles with one digest give the same results.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from enrichment.errors import BundleCorrupt, BundleInvalid, BundleMissing

__all__ = [
    "MANIFEST",
    "Bundle",
    "EncoderSpec",
    "ExtractiveSpec",
    "FileSpec",
    "HeadSpec",
    "Manifest",
    "ModelsSpec",
    "canonical",
    "install",
]

MANIFEST: Final = "bundle.json"
_CHUNK: Final = 1 << 20
_installing: Final = threading.Lock()

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FileSpec(_Spec):
    """A file: size in bytes, and hash."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class EncoderSpec(_Spec):
    """The sentence encoder; its graph's inputs are input_ids and attention_mask."""

    file: str
    tokenizer: str
    source: str
    revision: str
    source_sha256: Sha256
    license: str
    precision: Literal["int8", "fp32"]
    pooling: Literal["mean"]
    dimensions: int
    max_tokens: Annotated[int, Field(ge=8)]
    max_windows: Annotated[int, Field(ge=1)]


class HeadSpec(_Spec):
    """A linear classifier over the encoder's output and the cues; its arrays lie in `file` under the task's name."""

    file: str
    labels: Annotated[list[str], Field(min_length=2)]
    fallback: str
    threshold: Annotated[float, Field(ge=0, le=1)]
    training: dict[str, Any]


class ExtractiveSpec(_Spec):
    """The extractive summary: sentences of the ticket, at most `max_tokens` tokens."""

    kind: Literal["extractive"]
    max_tokens: Annotated[int, Field(ge=1)]
    min_words: Annotated[int, Field(ge=0)]


class ModelsSpec(_Spec):
    """All models of a bundle, by task."""

    encoder: EncoderSpec
    cues: str
    intent: HeadSpec
    urgency: HeadSpec
    sentiment: HeadSpec
    summary: ExtractiveSpec


class Manifest(_Spec):
    """`bundle.json`."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    profile: Literal["compact"]
    files: dict[str, FileSpec]
    models: ModelsSpec
    verification: dict[str, Any]


class Bundle:
    """An opened bundle: its folder, its manifest, its digest."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest

    @property
    def version(self) -> str:
        """`<name>@<first 12 digits of the digest>`: what `model_version` of an enriched ticket says."""
        return f"{self.manifest.name}@{self.digest[:12]}"

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> Bundle:
        """Reads the manifest and checks that every file is there in its full size; with `verify` every hash too.

        Raises BundleMissing, BundleInvalid or BundleCorrupt; the message names the file and how to mend it.
        """
        folder = Path(folder)
        try:
            raw = (folder / MANIFEST).read_bytes()
        except FileNotFoundError as error:
            raise BundleMissing(
                f"{folder} holds no {MANIFEST}; build a bundle with `python -m enrichment.export compact --out DIR`"
            ) from error
        manifest, digest = read_manifest(raw, str(folder))
        bundle = cls(folder, manifest, digest)
        for name, spec in manifest.files.items():
            bundle._check(name, spec, verify=verify)
        return bundle

    def path(self, name: str) -> Path:
        """Where the file of that name lies; only files that the manifest names have one."""
        if name not in self.manifest.files:
            raise BundleInvalid(
                f"{self.folder / MANIFEST} uses the file {name}, but does not list it; rebuild the bundle"
            )
        return self.folder / name

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


def canonical(manifest: dict[str, Any]) -> bytes:
    """The one spelling of a manifest whose sha256 is the digest: sorted keys, no spaces, UTF-8."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_manifest(raw: bytes, place: str) -> tuple[Manifest, str]:
    """A manifest and its digest from the bytes of bundle.json; `place` is named in errors. Raises BundleInvalid."""
    try:
        data = json.loads(raw)
        manifest = Manifest.model_validate(data)
        digest = hashlib.sha256(canonical(data)).hexdigest()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleInvalid(
            f"{place}/{MANIFEST}: {where}: {first['msg']}; build the bundle with this version of the library"
        ) from error
    except ValueError as error:
        raise BundleInvalid(f"{place}/{MANIFEST} is not JSON ({error}); copy or build the bundle again") from error
    for name in manifest.files:
        if PurePosixPath(name).name != name or name in {"", ".", "..", MANIFEST}:
            raise BundleInvalid(f"{place}/{MANIFEST} lists a file outside of its folder: {name!r}; rebuild the bundle")
    return manifest, digest


def install(open_file: Callable[[str], BinaryIO], cache: Path | str, *, place: str) -> Path:
    """Copies a bundle to `<cache>/<digest>` and returns that folder; copies nothing when it stands there already.

    `open_file(name)` gives a stream of the source's file of that name, `place` names the source in errors. Files are
    hashed while they are copied, under a temporary name, and renamed into place together: a half copy is never
    opened, and of two copies at once one wins. Raises BundleInvalid or BundleCorrupt.
    """
    cache = Path(cache)
    with open_file(MANIFEST) as stream:
        raw = stream.read()
    manifest, digest = read_manifest(raw, place)
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
            # Another process was faster. What stands under its digest was verified by that process.
            if not target.is_dir():
                raise


@contextmanager
def _scratch(cache: Path, digest: str) -> Iterator[Path]:
    """A temporary folder beside the target; leftovers of copies that were killed are swept, they would fill /tmp."""
    for stale in cache.glob(f"{digest}.part-*"):
        pid = stale.name.rsplit("-", 1)[-1].split(".")[0]
        # A process copies once: what bears our own pid is from one that had it before, in this same /tmp.
        if not pid.isdigit() or int(pid) == os.getpid() or not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{digest}.part-{os.getpid()}.", dir=cache))
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
