"""The model bundle: manifest and digest, opening, verifying, and installing exactly one complete copy."""

import hashlib
import io
import json
import os
import platform
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment import Bundle, BundleCorrupt, BundleError, BundleInvalid, BundleMissing, install
from enrichment.manifest import canonical, read_manifest

FILES = {
    "encoder.onnx": b"graph " * 300_000,  # more than one chunk of a copy
    "tokenizer.json": b"tokenizer",
    "features.json": b"words",
    "heads.npz": b"heads",
}


def _head(*labels: str) -> dict[str, Any]:
    return {"file": "heads.npz", "labels": [*labels], "fallback": labels[0], "threshold": 0.5, "training": {}}


def _manifest(files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "compact-test",
        "profile": "compact",
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in files.items()
        },
        "models": {
            "encoder": {
                "file": "encoder.onnx",
                "tokenizer": "tokenizer.json",
                "source": "someone/model",
                "revision": "abc",
                "source_sha256": "0" * 64,
                "license": "MIT",
                "precision": "int8",
                "pooling": "mean",
                "dimensions": 384,
                "max_tokens": 256,
                "max_windows": 4,
            },
            "features": "features.json",
            "intent": _head("a", "b"),
            "urgency": _head("low", "high"),
            "sentiment": _head("NEUTRAL", "POSITIVE"),
            "summary": {"kind": "extractive", "max_tokens": 50, "min_words": 20},
        },
        "verification": {"note": "äöü"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid bundle, whose models cannot be run."""
    place = tmp_path / "source"
    place.mkdir()
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    (place / "bundle.json").write_text(json.dumps(_manifest(FILES)))
    return place


def _copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def _source(folder: Path) -> Any:
    return lambda name: (folder / name).open("rb")


# -- opening and verifying ---------------------------------------------------------------------------------------------


def test_open_returns_paths_digest_and_version(folder: Path) -> None:
    bundle = Bundle.open(folder, verify=True)
    assert bundle.path("features.json") == folder / "features.json"
    assert bundle.digest == hashlib.sha256(canonical(_manifest(FILES))).hexdigest()
    assert bundle.version == f"compact-test@{bundle.digest[:12]}"
    assert Bundle.open(str(folder)).digest == bundle.digest


def test_shipped_bundle_matches_its_manifest(bundle: Path) -> None:
    opened = Bundle.open(bundle, verify=True)
    assert re.fullmatch(r"compact-int8@[0-9a-f]{12}", opened.version)
    assert sum(spec.size for spec in opened.manifest.files.values()) < 30_000_000


def test_missing_bundle_raises(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", folder / "features.json"):
        with pytest.raises(BundleMissing, match=r"holds no bundle\.json; build a bundle with `python -m enrichment"):
            Bundle.open(place)


def test_missing_file_raises(folder: Path) -> None:
    (folder / "features.json").unlink()
    with pytest.raises(BundleCorrupt, match=r"features\.json is missing; copy or build the bundle again"):
        Bundle.open(folder)


def test_truncated_file_raises(folder: Path) -> None:
    (folder / "heads.npz").write_bytes(b"head")
    with pytest.raises(BundleCorrupt, match=r"heads\.npz has 4 bytes instead of 5; copy or build"):
        Bundle.open(folder)


def test_changed_byte_is_found_only_by_verify(folder: Path) -> None:
    (folder / "heads.npz").write_bytes(b"heaps")
    assert Bundle.open(folder).version
    with pytest.raises(BundleCorrupt, match=r"heads\.npz differs from its sha256; copy or build"):
        Bundle.open(folder, verify=True)


def test_path_of_unlisted_file_raises(folder: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"bundle\.json uses the file other\.bin, but does not list it; rebuild"):
        Bundle.open(folder).path("other.bin")


# -- the manifest ------------------------------------------------------------------------------------------------------


def _shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, _shuffled(item, order)) for key, item in value.items()]
        order.shuffle(items)
        return dict(items)
    return [_shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(st.randoms(), st.sampled_from([None, 1, 4]), st.booleans())
def test_digest_ignores_json_formatting(order: random.Random, indent: int | None, plain: bool) -> None:
    manifest = _manifest(FILES)
    raw = json.dumps(_shuffled(manifest, order), indent=indent, ensure_ascii=plain).encode()
    assert read_manifest(raw, "here")[1] == hashlib.sha256(canonical(manifest)).hexdigest()


def test_digest_changes_with_the_content() -> None:
    digests = set()
    edits = [((), None), (("name",), "other"), (("verification", "note"), "x"), (("models", "features"), "x")]
    for place, value in edits:
        manifest = _manifest(FILES)
        target: Any = manifest
        for part in place[:-1]:
            target = target[part]
        if place:
            target[place[-1]] = value
        digests.add(read_manifest(json.dumps(manifest).encode(), "here")[1])
    assert len(digests) == 4


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        json.dumps({**_manifest(FILES), "verification": {"x": float("nan")}}).encode(),
        json.dumps({**_manifest(FILES), "verification": {"x": "\ud800"}}).encode(),
    ],
    ids=["empty", "cut", "not UTF-8", "nested", "NaN", "surrogate"],
)
def test_manifest_that_is_not_json_raises(raw: bytes) -> None:
    with pytest.raises(
        BundleInvalid, match=r"^s3://models/bundle\.json is not JSON .*; copy or build the bundle again$"
    ):
        read_manifest(raw, "s3://models")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schema_version", 2),
        ("profile", "huge"),
        ("name", "Über"),
        ("files.features.json.sha256", "xyz"),
        ("files.features.json.size", -1),
        ("models.encoder.precision", "int4"),
        ("models.encoder.surprise", 1),
        ("models.intent.labels", ["one"]),
        ("models.intent.threshold", 1.5),
        ("models.summary", {"kind": "poetic"}),
        ("models.summary", None),
    ],
)
def test_invalid_manifest_field_is_named(place: str, value: Any) -> None:
    manifest = _manifest(FILES)
    target: Any = manifest
    *parts, last = place.replace("features.json", "features/json").split(".")
    for part in parts:
        target = target[part.replace("/", ".")]
    target[last] = value
    with pytest.raises(BundleInvalid, match=rf"^here/bundle\.json: {place}.*build the bundle with this version"):
        read_manifest(json.dumps(manifest).encode(), "here")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "bundle.json", "nul\0", "a\n", "ü", "x" * 300],
)
def test_unsafe_file_name_is_rejected(name: str, tmp_path: Path) -> None:
    files = {**FILES, name: b"evil"}
    raw = json.dumps(_manifest(files)).encode()
    with pytest.raises(BundleInvalid, match="is no name of a file in its folder; rebuild the bundle"):
        install(
            lambda requested: io.BytesIO(raw if requested == "bundle.json" else files[requested]),
            tmp_path / "c",
            place="here",
        )
    assert not (tmp_path / "c").exists()


# -- installing --------------------------------------------------------------------------------------------------------


def test_install_copies_once(folder: Path, tmp_path: Path) -> None:
    requested: list[str] = []

    def source(name: str) -> BinaryIO:
        requested.append(name)
        return (folder / name).open("rb")

    cache = tmp_path / "cache" / "deep"
    target = install(source, cache, place="here")
    assert target == cache / Bundle.open(folder).digest
    assert Bundle.open(target, verify=True).digest == target.name
    assert (target / "bundle.json").read_bytes() == (folder / "bundle.json").read_bytes()
    assert sorted(requested) == sorted([*FILES, "bundle.json"])
    assert install(source, str(cache), place="here") == target
    assert requested[len(FILES) + 1 :] == ["bundle.json"]
    assert _copies(cache) == [target.name]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"heaps", r"^s3://models/heads\.npz differs from its sha256; upload or build the bundle again$"),
        (b"head", r"^s3://models/heads\.npz has 4 bytes instead of 5; upload or build the bundle again$"),
        (b"heads and more", r"heads\.npz has 14 bytes instead of 5"),
    ],
)
def test_corrupt_copy_is_removed(folder: Path, tmp_path: Path, content: bytes, reason: str) -> None:
    (folder / "heads.npz").write_bytes(content)
    cache = tmp_path / "cache"
    with pytest.raises(BundleCorrupt, match=reason):
        install(_source(folder), cache, place="s3://models")
    assert _copies(cache) == []
    (folder / "heads.npz").write_bytes(b"heads")
    Bundle.open(install(_source(folder), cache, place="s3://models"), verify=True)


def test_interrupted_copy_is_removed(folder: Path, tmp_path: Path) -> None:
    def source(name: str) -> BinaryIO:
        if name == "heads.npz":
            raise ConnectionError("gone")
        return (folder / name).open("rb")

    with pytest.raises(ConnectionError):
        install(source, tmp_path / "cache", place="here")
    assert _copies(tmp_path / "cache") == []


def test_concurrent_threads_install_one_copy(folder: Path, tmp_path: Path) -> None:
    requested: list[str] = []
    start = threading.Barrier(8)

    def source(name: str) -> BinaryIO:
        requested.append(name)
        return (folder / name).open("rb")

    def run(_: int) -> Path:
        start.wait()
        return install(source, tmp_path / "cache", place="here")

    with ThreadPoolExecutor(8) as pool:
        targets = set(pool.map(run, range(8)))
    assert len(targets) == 1
    assert requested.count("encoder.onnx") == 1
    Bundle.open(targets.pop(), verify=True)


INSTALL = """
import sys, time
from pathlib import Path
from enrichment import install

folder, cache, mark, gate = map(Path, sys.argv[1:])

def source(name):
    if name == "heads.npz":  # partial_copy of the files are copied by now
        mark.touch()
        while not gate.exists():
            time.sleep(0.005)
    return (folder / name).open("rb")

print(install(source, cache, place="here"))
"""


def _start(folder: Path, cache: Path, mark: Path, gate: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", INSTALL, *map(str, (folder, cache, mark, gate))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait_for(mark: Path, process: subprocess.Popen[str]) -> None:
    while not mark.exists():
        assert process.poll() is None, "the process ended early"
        threading.Event().wait(0.005)


def test_concurrent_processes_install_one_bundle(folder: Path, tmp_path: Path) -> None:
    cache, gate = tmp_path / "cache", tmp_path / "gate"
    marks = [tmp_path / "first", tmp_path / "second"]
    processes = [_start(folder, cache, mark, gate) for mark in marks]
    try:
        for mark, process in zip(marks, processes, strict=True):
            _wait_for(mark, process)
        partial_copies = _copies(cache)
    finally:
        gate.touch()
    places = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(partial_copies) == 2
    assert all(".part-" in name for name in partial_copies)  # neither used the other's partial copy as a bundle
    [place] = places
    assert _copies(cache) == [Path(place).name]
    Bundle.open(place, verify=True)


def test_partial_copy_of_killed_process_is_removed(folder: Path, tmp_path: Path) -> None:
    cache, mark, gate = tmp_path / "cache", tmp_path / "mark", tmp_path / "gate"
    with _start(folder, cache, mark, gate) as process:
        try:
            _wait_for(mark, process)
        finally:
            process.kill()
    [partial_copy] = _copies(cache)
    assert ".part-" in partial_copy
    target = install(_source(folder), cache, place="here")
    assert _copies(cache) == [target.name]
    Bundle.open(target, verify=True)


def test_partial_copies_of_running_processes_are_kept(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    digest = Bundle.open(folder).digest
    part = f"{digest}.part-{platform.node()}-"
    kept = [f"{part}{os.getppid()}.abc", f"{digest}.part-{platform.node()}x-1.abc", f"{'0' * 64}.part-x-1.abc"]
    swept = [f"{part}{os.getpid()}.abc", f"{part}what"]
    for name in [*kept, *swept]:
        (cache / name).mkdir(parents=True)
    install(_source(folder), cache, place="here")
    assert _copies(cache) == sorted([digest, *kept])


def test_blocked_target_raises_os_error(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / Bundle.open(folder).digest).write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        install(_source(folder), cache, place="here")


def test_bundle_errors_are_permanent() -> None:
    for kind in (BundleMissing, BundleInvalid, BundleCorrupt):
        assert issubclass(kind, BundleError)
        assert not kind.transient


def test_the_old_name_of_the_word_lists_stays_readable(folder: Path) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["models"]["cues"] = manifest["models"].pop("features")
    (folder / "bundle.json").write_text(json.dumps(manifest))
    assert Bundle.open(folder).manifest.models.features == "features.json"
