"""Copies the bundle at MODEL_BUNDLE to the local disk, once per container, and verifies it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlparse

from botocore.exceptions import BotoCoreError, ClientError

from enrichment.bundle import MANIFEST, Bundle, install
from enrichment.errors import BundleError, BundleInvalid, BundleMissing

__all__ = ["install_bundle"]


def install_bundle(uri: str, cache: str, s3: Callable[[], Any]) -> Path:
    """Copies the bundle at `file:///directory` or `s3://bucket/prefix` to `<cache>/<digest>`; returns that directory.

    Every file is hashed during the copy. An existing copy is trusted, unless a file is missing or has the wrong size;
    then the bundle is copied again. `s3()` returns a client and is called only for s3://. Raises BundleMissing,
    BundleInvalid or BundleCorrupt.
    """
    parts = urlparse(uri)
    if parts.scheme == "file":
        return _whole(_from_folder(Path(unquote(parts.path))), cache, uri)
    if parts.scheme == "s3" and parts.netloc:
        try:
            return _whole(_from_s3(s3(), parts.netloc, parts.path.strip("/")), cache, uri)
        except BotoCoreError as error:
            raise BundleMissing(f"MODEL_BUNDLE {uri} broke off while it was copied ({error}); start again") from error
    raise BundleInvalid(f"MODEL_BUNDLE is {uri!r}; it must be file:///folder or s3://bucket/prefix")


def _whole(open_file: Callable[[str], BinaryIO], cache: str, uri: str) -> Path:
    folder = install(open_file, cache, place=uri)
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
    return install(open_file, cache, place=uri)


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
