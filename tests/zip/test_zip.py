"""The function as a zip (`make zip`): every sample event has its expected outcome with only the zip's contents."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cfnlint.api import lint
from samtranslator.yaml_helper import yaml_parse

from handler.local import EmbeddedStack
from tests.support.cases import Case, load_cases, run_case
from tests.support.stack_harness import StackHarness
from tests.zip.unpacked import REPOSITORY, Unpacked, find_python, install_client

LIMIT = 250 * 1024 * 1024  # Lambda's limit for the unpacked zip
ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]


def build(*options: str) -> subprocess.CompletedProcess[str]:
    found = find_python()[1].parent  # the Python that compiles the modules
    environment = os.environ | {"PATH": f"{found}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    command = [sys.executable, "-m", "deploy.lambda.function_zip", *options]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip for the Python that will run it; template-zip.yaml is in the same folder."""
    out = tmp_path_factory.mktemp("dist")
    python, _ = find_python()
    ran = build("--python", python, "--architecture", ARCHITECTURE, "--bundle", str(bundle), "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    return Path(ran.stdout.strip())


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked zip."""
    found = tmp_path_factory.mktemp("task")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(found)
    return found


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack) -> StackHarness:
    return StackHarness(stack, lambda *_: {})


@pytest.fixture(scope="module")
def function(stack: EmbeddedStack, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacked]:
    python, program = find_python()
    client, cache = tmp_path_factory.mktemp("client"), tmp_path_factory.mktemp("tmp")
    install_client(client, python)
    settings = {"MODEL_BUNDLE": (folder / "bundle").as_uri(), "BUNDLE_CACHE_DIR": str(cache)}
    environment = stack.environment() | settings
    with Unpacked(folder, client, program, environment, cache / "log") as unpacked:
        yield unpacked


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.name)
def test_sample_event(case: Case, function: Unpacked, harness: StackHarness) -> None:
    run_case(case, function.answer, harness)


def test_function_writes_only_to_tmp(folder: Path, made: Path, function: Unpacked, harness: StackHarness) -> None:
    run_case(load_cases()[0], function.answer, harness)
    with zipfile.ZipFile(made) as archive:
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
            *archive.namelist()
        }


def test_modules_are_precompiled(folder: Path) -> None:
    # With unchecked hashes, because Lambda changes modification times. The flags are the file's second word.
    compiled = list((folder / "handler").glob("__pycache__/*.pyc"))
    assert len(compiled) == len(list((folder / "handler").glob("*.py")))
    assert {path.read_bytes()[4] for path in compiled} == {0b01}


def test_zip_is_within_limits_and_world_readable(made: Path) -> None:
    with zipfile.ZipFile(made) as archive:
        entries = archive.infolist()
    assert sum(entry.file_size for entry in entries) < LIMIT
    assert {entry.external_attr >> 16 for entry in entries} == {0o644}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}  # reproducible builds


def test_zip_has_the_functions_folders(folder: Path) -> None:
    program = (
        "import sys, json, handler.app, enrichment; print(json.dumps([m.__file__ for n, m in sys.modules.items()"
        " if n.split('.')[0] in {'handler', 'enrichment'}]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    imported = {Path(path).relative_to(REPOSITORY).as_posix() for path in json.loads(ran.stdout)}
    assert {path for path in imported if not (folder / path).is_file()} == set()
    contained = {path.relative_to(folder).as_posix() for path in (folder / "handler").rglob("*.py")}
    # main.py imports the others, and reads the environment. The other two are only imported with some settings.
    optional = {"handler/aws/batch_objects.py", "handler/aws/outbox.py"}
    assert contained - imported == {"handler/main.py", *optional}
    # handler's other folders are programs; export builds bundles, with training data.
    assert {path.name for path in (folder / "handler").iterdir() if path.is_dir()} - {"__pycache__"} == {"aws"}
    assert not (folder / "enrichment" / "export").exists()
    assert not list(folder.glob("awslambdaric*"))  # part of Lambda's Python


def test_zip_template_differs_only_in_the_package(made: Path) -> None:
    text = (made.parent / "template-zip.yaml").read_text(encoding="utf-8")
    template, image = yaml_parse(text), yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))
    function, of_image = (found["Resources"]["EnrichmentFunction"]["Properties"] for found in (template, image))
    changed = {name for name in {*function, *of_image} if function.get(name) != of_image.get(name)}
    assert changed == {"PackageType", "ImageUri", "ImageConfig", "CodeUri", "Runtime", "Handler"}
    assert (function["PackageType"], function["CodeUri"]) == ("Zip", made.name)
    assert function["Handler"] == of_image["ImageConfig"]["Command"][0]
    parameters = {name for name in {*template["Parameters"], *image["Parameters"]}
                  if template["Parameters"].get(name) != image["Parameters"].get(name)}  # fmt: skip
    assert parameters == {"ImageUri", "Architecture", "ModelBundle"}
    assert template["Parameters"]["ModelBundle"]["Default"] == "file:///var/task/bundle"
    for found in (template, image):
        del found["Resources"]["EnrichmentFunction"]
    assert {part for part in image if template[part] != image[part]} == {"Description", "Metadata", "Parameters"}
    if function["Runtime"] == "python3.13":  # cfn-lint reports the others when they are deprecated
        assert lint(text, regions=["eu-central-1"]) == []
    assert not [event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)]


def test_build_error_is_one_line(bundle: Path, tmp_path: Path) -> None:
    ran = build("--bundle", str(tmp_path), "--out", str(tmp_path))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == f"error: there is no model bundle in {tmp_path}; build it with `make bundle`"
    ran = build("--bundle", str(bundle), "--python", "3.2", "--out", str(tmp_path))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: pip has no wheels for Python 3.2 on x86_64: ")
