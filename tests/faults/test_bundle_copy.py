"""A worker that copies its bundle from S3: killed while copying, with a corrupt source file, with a damaged copy."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enrichment import Bundle
from tests.support.fault_injection import Call, Fault, Stall
from tests.support.proxy import Proxy
from tests.support.workers import worker

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

BUCKET = "model-bundles"
ENCODER = "encoder.onnx"


@dataclass
class BundleStore:
    """The bundle in S3, and the worker's cache."""

    scenario: Scenario
    cache: Path

    def __post_init__(self) -> None:
        self._s3 = self.scenario.stack.client("s3")
        self._s3.create_bucket(Bucket=BUCKET)
        for path in self.scenario.bundle.iterdir():
            self.put(path.name, path.read_bytes())

    def put(self, name: str, content: bytes) -> None:
        self._s3.put_object(Bucket=BUCKET, Key=f"compact/{name}", Body=content)

    def environment(self, **more: str) -> dict[str, str]:
        own = {"MODEL_BUNDLE": f"s3://{BUCKET}/compact", "BUNDLE_CACHE_DIR": str(self.cache)}
        return {**self.scenario.stack.environment(), **own, **more}

    def is_complete(self) -> bool:
        """Whether there is exactly one copy and all its hashes match its manifest."""
        (folder,) = self.cache.iterdir()
        return Bundle.open(folder, verify=True).digest == folder.name


@pytest.fixture
def bundle_store(scenario: Scenario, tmp_path: Path) -> BundleStore:
    return BundleStore(scenario, tmp_path / "cache")


def test_worker_killed_while_copying_its_bundle(scenario: Scenario, bundle_store: BundleStore, tmp_path: Path) -> None:
    files = ["tokenizer.json", ENCODER, "heads.npz"]
    kills: list[list[str]] = []
    messages = scenario.traffic.mixed(scenario.size(300))
    scenario.sender.send(messages)

    def stall(call: Call) -> Fault | None:
        name = call.subject.rpartition("/")[2]
        if call.name == "GET" and files and name == files[0]:
            files.pop(0)
            return Stall(30, delivered=True, share=0.5)
        return None

    def is_copying(left: int) -> bool:
        return len(files) == left and bundle_store.cache.is_dir() and any(bundle_store.cache.iterdir())

    with (
        Proxy(scenario.stack.endpoint_url, stall) as proxy,
        worker(bundle_store.environment(AWS_ENDPOINT_URL=proxy.url), tmp_path / "log") as one,
    ):
        for left in (2, 1, 0):
            wait_for(partial(is_copying, left))
            time.sleep(0.2)  # let it write the received part to disk
            child = one.child()
            assert child is not None
            kills.append([path.name for path in bundle_store.cache.iterdir()])
            os.kill(child, signal.SIGKILL)
        one.wait_until("a process is ready")
        scenario.sender.wait_until_empty()
    assert bundle_store.is_complete()
    # Each time there was a partial copy, under a name that is never opened; the next process removed it.
    assert [len(names) for names in kills] == [1, 1, 1]
    assert all(".part-" in name for names in kills for name in names)
    scenario.reconcile(messages, {"killed during the copy": len(kills)})


def test_corrupt_source_file_stops_the_worker(scenario: Scenario, bundle_store: BundleStore, tmp_path: Path) -> None:
    good = (scenario.bundle / ENCODER).read_bytes()
    bundle_store.put(ENCODER, good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    messages = scenario.traffic.mixed(scenario.size(100))
    scenario.sender.send(messages)
    wait_for(lambda: scenario.sender.depth()[0] == len(messages))  # S3 notifies the queue a moment after an upload
    before = scenario.sender.depth()
    with worker(bundle_store.environment(), tmp_path / "log") as one:
        assert one.process.wait(60) == 1
        (line,) = [text for text in one.log.read_text().splitlines() if text.startswith("ticket-processor:")]
        assert ENCODER in line
        assert "sha256" in line
        assert "upload or build the bundle again" in line
    assert list(bundle_store.cache.iterdir()) == []
    assert scenario.sender.depth() == before  # it took no message
    bundle_store.put(ENCODER, good)
    with worker(bundle_store.environment(), tmp_path / "log"):
        scenario.sender.wait_until_empty()
    assert bundle_store.is_complete()
    scenario.reconcile(messages)


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_damaged_copy_is_replaced(scenario: Scenario, bundle_store: BundleStore, tmp_path: Path, damage: str) -> None:
    with worker(bundle_store.environment(), tmp_path / "log") as one:
        one.wait_until("a process is ready")
    (folder,) = bundle_store.cache.iterdir()
    match damage:
        case "truncated":
            with (folder / ENCODER).open("r+b") as file:
                file.truncate(1000)
        case "missing":
            (folder / ENCODER).unlink()
        case "manifest":
            (folder / "bundle.json").write_text("{")
    messages = scenario.traffic.mixed(scenario.size(100))
    scenario.sender.send(messages)
    with worker(bundle_store.environment(), tmp_path / "log"):
        scenario.sender.wait_until_empty()
    assert bundle_store.is_complete()
    scenario.reconcile(messages)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)
