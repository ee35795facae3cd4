"""Start of an environment: the bundle is copied once, init loads the models, and HOME does not matter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runtime.container import LambdaContainer
from tests.runtime.deployed import Lambda, answer
from tests.support.cases import load_cases, run_case

(ONE_TICKET,) = [case for case in load_cases() if case.name == "one-ticket"]

# Every file in /tmp: path, inode, modification time, size.
FILES = """
import json, pathlib
files = sorted(path for path in pathlib.Path("/tmp").rglob("*") if path.is_file())
print(json.dumps({str(path): [path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size] for path in files}))
"""
# The function's process: its HOME and its resident memory.
PROCESS = """
import json, pathlib, re
(process,) = [p.parent for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if b"-m\\0awslambdaric" in p.read_bytes()]
variables = dict(v.split("=", 1) for v in (process / "environ").read_text().split("\\0") if v)
resident = int(re.search(r"VmRSS:\\s+(\\d+) kB", (process / "status").read_text())[1]) * 1024
print(json.dumps({"home": variables.get("HOME"), "resident": resident}))
"""


def run_python(container: LambdaContainer, program: str) -> dict[str, Any]:
    """Run a Python program in the container and parse its JSON output."""
    return dict(json.loads(container.run("python3", "-P", "-c", program)))


def test_bundle_is_copied_once_per_container(deployed: Lambda) -> None:
    with deployed.container() as container:
        invoke, harness = deployed.invoker(container), deployed.harness(container)
        answers = [run_case(ONE_TICKET, invoke, harness)]
        first = run_python(container, FILES)
        # Only the bundle: no partial copy, and no telemetry files of ONNX Runtime.
        (folder,) = {path.rpartition("/")[0] for path in first}
        assert len(folder.rpartition("/")[2]) == 64
        assert {path.rpartition("/")[2] for path in first} > {"bundle.json", "encoder.onnx", "tokenizer.json"}
        for _ in range(9):
            answers.append(run_case(ONE_TICKET, invoke, harness))
            assert run_python(container, FILES) == first
        starts = [line["BundleLoadTime"] for reply in answers for line in reply.lines() if "BundleLoadTime" in line]
        assert len(starts) == 1
        container.kill()
        assert container.invoke(ONE_TICKET.event_for(harness.raw_bucket)).crashed
        again = run_case(ONE_TICKET, invoke, harness)  # the same /tmp, a new process
        assert [line["ColdStart"] for line in again.lines() if "ColdStart" in line] == [[1.0]]
        assert run_python(container, FILES) == first
        deployed.metrics.peaks["eleven invocations of one ticket"] = container.memory_peak()


def test_init_loads_the_models(deployed: Lambda) -> None:
    with deployed.container() as container:
        invocation = deployed.recorded(container.invoke({"Event": "s3:TestEvent"}))
        assert answer(invocation).response == {"batchItemFailures": []}
        (model,) = [
            size for path, (_, _, size) in run_python(container, FILES).items() if path.endswith("/encoder.onnx")
        ]
        before = run_python(container, PROCESS)["resident"]
        run_case(ONE_TICKET, deployed.invoker(container), deployed.harness(container))
        # If the first ticket had loaded the models, memory would have grown by at least their size.
        assert run_python(container, PROCESS)["resident"] - before < model / 2


def test_image_has_only_the_functions_modules(container: LambdaContainer) -> None:
    program = """
import json, pathlib, sys
import handler, handler.app, handler.settings
import handler.aws.batch_objects, handler.aws.outbox  # only imported with some settings
imported = {name for name in sys.modules if name.startswith("handler")} | {"handler.main"}
folder = pathlib.Path(handler.__file__).parent
there = {".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
print(json.dumps({"beyond": sorted({name.removesuffix(".__init__") for name in there} - imported)}))
"""
    assert run_python(container, program) == {"beyond": []}


@pytest.mark.parametrize(
    ("home", "wrapper"),
    [
        ("/home/sbx_user1051", ()),  # Lambda's own, which does not exist in images
        ("/root", ()),
        ("/dev/null", ()),
        (None, ("/usr/bin/env", "-u", "HOME")),
    ],
    ids=["lambda", "forbidden", "no-folder", "unset"],
)
def test_home_may_be_unset_or_missing(deployed: Lambda, home: str | None, wrapper: tuple[str, ...]) -> None:
    with deployed.container(variables={"HOME": home}, wrapper=wrapper) as container:
        run_case(ONE_TICKET, deployed.invoker(container), deployed.harness(container))
        assert run_python(container, PROCESS)["home"] == home
