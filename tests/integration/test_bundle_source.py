"""From MODEL_BUNDLE to a local folder: file:// and s3://, copied once and completely, also by concurrent processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import IncompleteReadError
from moto import mock_aws

from enrichment.bundle import MANIFEST, Bundle
from enrichment.errors import BundleCorrupt, BundleError, BundleInvalid, BundleMissing
from handler.aws.bundle_source import install_bundle
from handler.local import EmbeddedStack

REPOSITORY = Path(__file__).resolve().parents[2]
COPY = """
import sys, time, boto3
from pathlib import Path
from handler.aws.bundle_source import install_bundle
uri, cache, go = sys.argv[1:]
client = boto3.client("s3") if uri.startswith("s3:") else None
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.002)
print(install_bundle(uri, cache, lambda: client))
"""


def no_client() -> Any:
    raise AssertionError("a file:// bundle needs no S3")


@pytest.fixture(scope="module")
def small(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the real manifest and small files."""
    folder = tmp_path_factory.mktemp("small")
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    for name in manifest["files"]:
        content = f"the content of {name}".encode() * 3
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@cache
def session() -> Any:
    """Shared by all tests: each new session would read boto's service description again."""
    return boto3.session.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")


@pytest.fixture
def s3(small: Path) -> Iterator[Any]:
    """S3 with this bundle in the bucket `models`, under `prefix/deep` and at the top level."""
    with mock_aws():
        client = session().client("s3")
        client.create_bucket(Bucket="models")
        for path in small.iterdir():
            for key in (f"prefix/deep/{path.name}", path.name):
                client.put_object(Bucket="models", Key=key, Body=path.read_bytes())
        yield client


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if ".part-" in path.name]


def test_folder_is_copied_under_its_digest(small: Path, tmp_path: Path) -> None:
    target = install_bundle(small.as_uri(), str(tmp_path / "made" / "here"), no_client)
    assert target.parent == tmp_path / "made" / "here"
    assert contents(target) == contents(small)
    assert Bundle.open(target, verify=True).digest == target.name
    assert leftovers(target.parent) == []


def test_folder_name_may_contain_spaces(small: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "a b%20ü"
    spaced.symlink_to(small)
    assert install_bundle(spaced.as_uri(), str(tmp_path), no_client).is_dir()


def test_existing_copy_is_reused(small: Path, tmp_path: Path) -> None:
    target = install_bundle(small.as_uri(), str(tmp_path), no_client)
    changed = (target / "encoder.onnx").read_bytes().swapcase()
    (target / "encoder.onnx").write_bytes(changed)
    assert install_bundle(small.as_uri(), str(tmp_path), no_client) == target
    assert (target / "encoder.onnx").read_bytes() == changed


@pytest.mark.parametrize("change", ["writable by all", "a link"])
def test_folder_that_others_can_change_is_not_opened(small: Path, tmp_path: Path, change: str) -> None:
    target = install_bundle(small.as_uri(), str(tmp_path), no_client)
    match change:
        case "writable by all":
            target.chmod(0o707)
        case "a link":
            target.rename(tmp_path / "elsewhere")
            target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleInvalid, match=rf"{target} is not opened: other users can change it; remove it, or set"):
        install_bundle(small.as_uri(), str(tmp_path), no_client)


@pytest.mark.parametrize(("user", "group"), [(65534, -1), (-1, 65533)])
def test_folder_of_another_user_or_group_is_not_opened(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, group: int
) -> None:
    target = install_bundle(small.as_uri(), str(tmp_path), no_client)
    target.chmod(0o770)
    assert install_bundle(small.as_uri(), str(tmp_path), no_client) == target  # writable by this user's own group
    if os.geteuid() == 0:
        os.chown(target, user, group)
    elif group == -1:  # only root can give a folder to somebody else, so somebody else reads it
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
    else:
        other = os.getegid() + 1
        monkeypatch.setattr(os, "getegid", lambda: other)
        monkeypatch.setattr(os, "getgroups", list)
    with pytest.raises(BundleInvalid, match="other users can change it"):
        install_bundle(small.as_uri(), str(tmp_path), no_client)


def test_only_the_expected_digest_is_copied(small: Path, tmp_path: Path) -> None:
    digest = Bundle.open(small).digest
    with pytest.raises(BundleInvalid, match=rf"has the digest {digest} instead of the expected {'0' * 64}; "):
        install_bundle(small.as_uri(), str(tmp_path / "cache"), no_client, "0" * 64)
    assert not (tmp_path / "cache").exists()
    assert install_bundle(small.as_uri(), str(tmp_path / "cache"), no_client, digest).name == digest


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "another manifest"])
def test_damaged_copy_is_replaced(small: Path, tmp_path: Path, damage: str) -> None:
    target = install_bundle(small.as_uri(), str(tmp_path), no_client)
    manifest = target / "bundle.json"
    match damage:
        case "truncated":
            (target / "encoder.onnx").write_bytes(b"the")
        case "missing":
            (target / "encoder.onnx").unlink()
        case "no manifest":
            manifest.unlink()
        case "another manifest":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"name": "another"}))
    assert install_bundle(small.as_uri(), str(tmp_path), no_client) == target
    assert contents(target) == contents(small)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("uri", ["s3://models/prefix/deep", "s3://models/prefix/deep/", "s3://models", "s3://models/"])
def test_s3_bundle_is_copied(small: Path, s3: Any, tmp_path: Path, uri: str) -> None:
    target = install_bundle(uri, str(tmp_path), lambda: s3)
    assert contents(target) == contents(small)
    for name in contents(small):
        if name != MANIFEST:
            s3.delete_object(Bucket="models", Key=f"prefix/deep/{name}")
    assert install_bundle("s3://models/prefix/deep", str(tmp_path), lambda: s3) == target, "only the manifest is read"


def test_corrupt_file_is_reported_and_removed(s3: Any, tmp_path: Path) -> None:
    good = s3.get_object(Bucket="models", Key="heads.npz")["Body"].read()
    for bad, message in ((good[:-1] + b"X", "differs from its sha256"), (good[:-1], "bytes instead of")):
        s3.put_object(Bucket="models", Key="prefix/deep/heads.npz", Body=bad)
        with pytest.raises(BundleCorrupt, match=rf"s3://models/prefix/deep/heads\.npz.*{message}.*upload"):
            install_bundle("s3://models/prefix/deep", str(tmp_path), lambda: s3)
        assert list(tmp_path.iterdir()) == []
    s3.put_object(Bucket="models", Key="prefix/deep/heads.npz", Body=good)
    assert install_bundle("s3://models/prefix/deep", str(tmp_path), lambda: s3).is_dir(), (
        "after the repair, it is copied"
    )


@pytest.mark.parametrize("name", ["encoder.onnx", MANIFEST])
def test_missing_file_is_reported_and_the_copy_removed(s3: Any, tmp_path: Path, name: str) -> None:
    s3.delete_object(Bucket="models", Key=f"prefix/deep/{name}")
    with pytest.raises(BundleMissing, match=rf"s3://models/prefix/deep, where {name} cannot be read .*NoSuchKey"):
        install_bundle("s3://models/prefix/deep", str(tmp_path), lambda: s3)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_download_is_a_bundle_error(s3: Any, tmp_path: Path) -> None:
    class Broken:
        """An S3 client whose bodies end early."""

        def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
            answer: dict[str, Any] = s3.get_object(Bucket=Bucket, Key=Key)
            if Key.endswith("encoder.onnx"):
                answer["Body"]._content_length = 10**6
            return answer

    with pytest.raises(BundleMissing, match=r"s3://models broke off .*start again") as caught:
        install_bundle("s3://models", str(tmp_path), Broken)
    assert isinstance(caught.value.__cause__, IncompleteReadError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("file:///no/such/folder", BundleMissing, r"/no/such/folder, where bundle\.json cannot be read \(No such file"),
        ("https://models/x", BundleInvalid, "must be file:///folder or s3://bucket/prefix"),
        ("s3:///prefix", BundleInvalid, "must be file:///folder or s3://bucket/prefix"),
    ],
)
def test_invalid_uri_error_names_the_fix(tmp_path: Path, uri: str, kind: type[BundleError], message: str) -> None:
    with pytest.raises(kind, match=message):
        install_bundle(uri, str(tmp_path), no_client)


def test_invalid_manifest_is_reported(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="models", Key=MANIFEST, Body=b"{")
    with pytest.raises(BundleInvalid, match="is not JSON"):
        install_bundle("s3://models", str(tmp_path), lambda: s3)


def start(uri: str, cache: Path, start_file: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COPY, uri, str(cache), str(start_file)],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    )


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_copy_of_a_killed_process_is_never_opened_and_is_removed(small: Path, tmp_path: Path) -> None:
    source, cache, start_file = tmp_path / "source", tmp_path / "cache", tmp_path / "go"
    source.mkdir()
    for name, content in contents(small).items():
        if name != "tokenizer.json":
            (source / name).write_bytes(content)
    os.mkfifo(source / "tokenizer.json")  # delivers half of the file and then blocks
    start_file.touch()
    # Opened for reading and writing, so that opening does not block.
    pipe = os.open(source / "tokenizer.json", os.O_RDWR)
    with start(source.as_uri(), cache, start_file) as child, os.fdopen(pipe, "wb", buffering=0) as pipe_file:
        pipe_file.write(b"the conte")
        assert eventually(lambda: cache.is_dir() and len(list(cache.glob("*.part-*/tokenizer.json"))) == 1)
        child.kill()
    (left,) = leftovers(cache)
    assert [path.name for path in cache.iterdir()] == [left], "no folder has the digest as its name"
    target = install_bundle(small.as_uri(), str(cache), no_client)
    assert contents(target) == contents(small)
    assert leftovers(cache) == []


def test_concurrent_installs_both_get_the_complete_bundle(small: Path, stack: EmbeddedStack, tmp_path: Path) -> None:
    s3 = stack.client("s3")
    s3.create_bucket(Bucket="models-for-two")
    manifest = json.loads((small / MANIFEST).read_bytes())
    large = os.urandom(8_000_000)  # long enough for the copies to overlap
    manifest["files"]["encoder.onnx"] = {"sha256": hashlib.sha256(large).hexdigest(), "size": len(large)}
    files = contents(small) | {"encoder.onnx": large, MANIFEST: json.dumps(manifest).encode()}
    for name, content in files.items():
        s3.put_object(Bucket="models-for-two", Key=f"v1/{name}", Body=content)
    start_file = tmp_path / "go"
    children = [start("s3://models-for-two/v1", tmp_path / "cache", start_file, stack.environment()) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    start_file.touch()
    printed = {child.communicate(timeout=120)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    (target,) = map(Path, printed)
    assert contents(target) == files
    assert leftovers(tmp_path / "cache") == []
