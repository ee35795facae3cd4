"""Copies the bundle at MODEL_BUNDLE to the local disk, once per container, and verifies it."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlparse

from botocore.exceptions import BotoCoreError, ClientError

from enrichment.bundle import MANIFEST, Bundle, install
from enrichment.errors import BundleError, BundleInvalid, BundleMissing
from enrichment.manifest import Manifest, read_manifest

__all__ = ["install_bundle", "read_bundle_manifest"]


def install_bundle(uri: str, cache: str, s3: Callable[[], Any], digest: str | None = None) -> Path:
    """Copies the bundle at `file:///directory` or `s3://bucket/prefix` to `<cache>/<digest>`; returns that directory.

    Every file is hashed during the copy. An existing copy is not hashed again, but it must belong to this user or to
    root, and others must not be able to write to it; if a file is missing or has the wrong size, the bundle is copied
    again. `digest` is the expected one, if only that bundle may be used. `s3()` returns a client and is called only for
    s3://. Raises BundleMissing, BundleInvalid or BundleCorrupt.
    """
    open_file = _opener(uri, s3)
    try:
        return _whole(open_file, cache, uri, digest)
    except BotoCoreError as error:
        raise BundleMissing(f"MODEL_BUNDLE {uri} broke off while it was copied ({error}); start again") from error


def read_bundle_manifest(uri: str, s3: Callable[[], Any]) -> tuple[Manifest, str]:
    """Reads only bundle.json: the manifest and its digest; `uri`, `s3` and errors are those of install_bundle."""
    with _opener(uri, s3)(MANIFEST) as stream:
        return read_manifest(stream.read(), uri)


def _opener(uri: str, s3: Callable[[], Any]) -> Callable[[str], BinaryIO]:
    """A function that opens a file of the bundle. Raises BundleInvalid if the address is not one of a bundle."""
    parts = urlparse(uri)
    if parts.scheme == "file":
        return _from_folder(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return _from_s3(s3(), parts.netloc, parts.path.strip("/"))
    raise BundleInvalid(f"MODEL_BUNDLE is {uri!r}; it must be file:///folder or s3://bucket/prefix")


def _whole(open_file: Callable[[str], BinaryIO], cache: str, uri: str, digest: str | None) -> Path:
    folder = install(open_file, cache, place=uri, expected_digest=digest)
    _check_owner(folder)
    try:
        if Bundle.open(folder).digest == folder.name:
            return folder
    except BundleError:
        pass
    # If the damaged copy stayed, every start in this container would fail. enrichment.bundle deletes directories with
    # this name pattern, in case this process is killed now.
    aside = folder.with_name(f"{folder.name}.part-{platform.node()}-{os.getpid()}.damaged")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    return install(open_file, cache, place=uri, expected_digest=digest)


def _check_owner(folder: Path) -> None:
    """Raises BundleInvalid if another user could have put files there: anybody can create a folder in /tmp."""
    status = folder.lstat()  # not stat: a link belongs to whoever can change where it leads
    foreign = stat.S_IWOTH
    # Kubernetes makes a volume writable to the pod's own group (fsGroup).
    if status.st_gid not in (os.getegid(), *os.getgroups()):
        foreign |= stat.S_IWGRP
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & foreign
    if not is_private or status.st_uid not in (os.geteuid(), 0):
        raise BundleInvalid(
            f"{folder} is not opened: other users can change it; remove it, or set BUNDLE_CACHE_DIR to a "
            "directory that only this user can write to"
        )


def _from_folder(folder: Path) -> Callable[[str], BinaryIO]:
    def open_file(name: str) -> BinaryIO:
        try:
            return (folder / name).open("rb")
        except OSError as error:
            raise BundleMissing(
                f"MODEL_BUNDLE names {folder}, where {name} cannot be read ({error.strerror}); "
                f"point it at a folder that holds {MANIFEST}"
            ) from error

    return open_file


def _from_s3(client: Any, bucket: str, prefix: str) -> Callable[[str], BinaryIO]:
    def open_file(name: str) -> BinaryIO:
        key = f"{prefix}/{name}" if prefix else name
        try:
            # closing(), because a StreamingBody used in `with` yields the raw stream, whose errors are not botocore's.
            return cast("BinaryIO", closing(client.get_object(Bucket=bucket, Key=key)["Body"]))
        except (ClientError, BotoCoreError) as error:
            raise BundleMissing(
                f"MODEL_BUNDLE names s3://{bucket}/{prefix}, where {name} cannot be read ({error}); "
                "check the address, and that the function's role may read it"
            ) from error

    return open_file
