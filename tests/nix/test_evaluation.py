"""The packages of .flox/pkgs, evaluated by Nix with a fake nixpkgs: every name that they use is defined.

Needs nix-instantiate (on Debian: apt-get install nix-bin) and no store. Tests that need no Nix are in
tests/infrastructure/test_packages.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.nix_expressions import Expression

REPOSITORY = Path(__file__).resolve().parents[2]
EXPRESSIONS = sorted((REPOSITORY / ".flox" / "pkgs").glob("*.nix"))
FAKE_NIXPKGS = Path(__file__).with_name("nixpkgs.nix")


def nix(*arguments: str) -> str:
    """The output of nix-instantiate, which parses and evaluates but builds nothing."""
    program = shutil.which("nix-instantiate")
    if program is None:
        pytest.fail("nix-instantiate is missing; on Debian: apt-get install nix-bin")
    done = subprocess.run([program, "--store", "dummy://", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages() -> dict[str, Any]:
    """Every expression, evaluated."""
    files = " ".join(f'"{path.stem}" = /. + "{path}";' for path in EXPRESSIONS)
    call = f'import (/. + "{FAKE_NIXPKGS}") {{ expressions = {{ {files} }}; }}'
    return dict(json.loads(nix("--eval", "--strict", "--json", "-E", call)))


@pytest.mark.parametrize("path", EXPRESSIONS, ids=lambda path: path.name)
def test_nix_parses_the_expression(path: Path) -> None:
    nix("--parse", str(path))
    assert Expression(path).syntax_errors() == []  # both parsers agree


def test_syntax_error_is_detected(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nix"
    broken.write_text("{ lib }: { pname = ; }")
    with pytest.raises(AssertionError, match="syntax error"):
        nix("--parse", str(broken))


def test_undefined_name_is_detected(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nix"
    broken.write_text("{ lib }: { pname = name; }")
    with pytest.raises(AssertionError, match="undefined variable 'name'"):
        nix("--parse", str(broken))


def test_every_package_evaluates(packages: dict[str, Any]) -> None:
    assert packages.keys() == {path.stem for path in EXPRESSIONS}
    for stem, package in packages.items():
        assert package["pname"] == stem
        assert package["checks"], f"{stem}: the build checks nothing"
        assert "${" not in package["build"] + package["install"]


def test_evaluated_lists_match_those_parsed_without_nix(packages: dict[str, Any]) -> None:
    for path in EXPRESSIONS:
        values = Expression(path).values
        for name in ("build-system", "dependencies"):
            assert packages[path.stem][name] == values.get(name, []), (path.name, name)
        assert packages[path.stem]["extras"] == values.get("optional-dependencies", {})


def test_interpreters_have_the_function_and_its_extras(packages: dict[str, Any]) -> None:
    extras = packages["ticket-enrichment"]["extras"]
    for stem, extra in {"ticket-lambda": "lambda", "ticket-processor": "cli", "ticket-bundle": "export"}.items():
        interpreter = ":".join(["ticket-enrichment", *extras[extra]])
        assert f"/nix/store/python:{interpreter}/bin/" in packages[stem]["build"] + packages[stem]["install"]


def test_weights_are_copied_under_their_fetched_names(packages: dict[str, Any]) -> None:
    package = packages["ticket-bundle"]
    for path, file in package["fetched"].items():
        assert file["url"].endswith(f"/{path}")
        assert f"cp /nix/store/{Path(path).name} weights/{path}\n" in package["build"]
