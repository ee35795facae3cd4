"""What import-linter cannot check: the code runs without unneeded packages, and imports have no side effects.

The import rules between packages are in pyproject.toml, [tool.importlinter]; `make lint` checks them.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("enrichment", "handler", "events")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

AWS = {"boto3", "botocore", "aws_lambda_powertools"}
# Packages that build a bundle; using a bundle must never need them.
BUILDERS = {"torch", "transformers", "optimum", "sentence_transformers", "onnx", "sklearn", "scipy"}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _third_party_imports(path: Path) -> set[str]:
    """The third-party packages that a module imports at import time."""
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))
    return found - {*PACKAGES, "__future__"}


# -- processes in which some packages cannot be imported ---------------------------------------------------------------

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} cannot be imported here", name=name)

BLOCKED = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Block())
try:
    __import__(sorted(BLOCKED)[0])
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the import block does not work")
"""
ENRICH = """
from enrichment import Enricher, RawTicket, enriched_json
ticket = RawTicket(ticket_id="T", customer_id="C", created_at=1, subject="Login", body="My password is refused.")
[result] = Enricher.open(sys.argv[1]).enrich([ticket])
print(enriched_json(ticket, result).decode())
"""


def _run(script: str, *arguments: str, home: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_handler_runs_without_export_dependencies(bundle: Path) -> None:
    done = _run(BLOCK + "import handler.app" + ENRICH, str(bundle), ",".join(BUILDERS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["enrichment"]["intent"] == "login_issue"


def test_library_runs_without_aws_and_cli_dependencies(bundle: Path) -> None:
    others = {"handler", "events", "typer", "rich"}
    done = _run(BLOCK + ENRICH, str(bundle), ",".join(AWS | BUILDERS | others))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["enrichment"]["intent"] == "login_issue"


# -- imports have no side effects --------------------------------------------------------------------------------------

WATCH = """
import collections.abc, importlib, json, os, sys

roots, modules, others = map(json.loads, sys.argv[1:])
KINDS = ("open", "os.", "socket.", "subprocess.", "shutil.", "glob.", "tempfile.", "env")
for name in others:  # third-party modules may do anything at import time
    importlib.import_module(name)

found, watching = [], False

def watch(event, arguments):
    if not watching or not event.startswith(KINDS):
        return
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        # The import system itself, or a third-party module that is being imported; and pydantic, which looks for
        # plug-ins whenever a model is declared.
        if name.startswith("<frozen importlib") or "/pydantic/plugin/" in name:
            return
        if name.startswith(tuple(roots)):
            found.append(f"{os.path.basename(name)}:{frame.f_lineno}: {event} {arguments[:1]}")
            return
        frame = frame.f_back

class Environment(collections.abc.MutableMapping):
    def __init__(self, real):
        self._real = real
    def __getitem__(self, name):
        watch("env", (name,))
        return self._real[name]
    def __setitem__(self, name, value):
        self._real[name] = value
    def __delitem__(self, name):
        del self._real[name]
    def __iter__(self):
        watch("env", ("*",))
        return iter(self._real)
    def __len__(self):
        return len(self._real)
    def copy(self):
        watch("env", ("*",))
        return self._real.copy()

os.environ = Environment(os.environ)
sys.addaudithook(watch)
watching = True
for name in modules:
    importlib.import_module(name)
watching = False
print(json.dumps(found))
"""


def _side_effects_of_importing(modules: list[str], others: list[str], home: Path) -> list[str]:
    roots = [str(home / package) for package in PACKAGES] if home == ROOT else [str(home)]
    done = _run(WATCH, *map(json.dumps, (roots, modules, others)), home=home)
    assert done.returncode == 0, done.stderr
    return [str(line) for line in json.loads(done.stdout) if "ORT_DISABLE_TELEMETRY" not in line]  # set, not read


def test_importing_reads_no_environment_disk_or_network() -> None:
    quiet = [path for path in MODULES if _name(path) != "handler.main"]  # its purpose is to have side effects
    foreign = set().union(*map(_third_party_imports, quiet))
    assert _side_effects_of_importing([_name(path) for path in quiet], sorted(foreign), ROOT) == []


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("open(__file__).close()", "open"),
        ("pathlib.Path(__file__).read_text()", "open"),
        ("os.listdir('.')", "os.listdir"),
        ("os.getenv('HOME')", "env"),
        ("os.environ.get('HOME')", "env"),
        ("'HOME' in os.environ", "env"),
        ("dict(os.environ)", "env"),
        ("socket.gethostbyname('127.0.0.1')", "socket.gethostbyname"),
        ("tempfile.mkdtemp()", "tempfile.mkdtemp"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("def read(path=open(__file__).close()): pass", "open"),
    ],
)
def test_side_effects_of_an_import_are_detected(tmp_path: Path, line: str, event: str) -> None:
    others = ["os", "pathlib", "socket", "subprocess", "tempfile"]
    (tmp_path / "naughty.py").write_text(f"import {', '.join(others)}\n{line}\n")
    (tmp_path / "good.py").write_text("import naughty\n")
    found = _side_effects_of_importing(["good"], others, tmp_path)
    assert any(entry.startswith(f"naughty.py:2: {event}") for entry in found), found


def test_no_module_has_a_vague_name() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "base", "core"}
    parts = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & vague
