"""The rules of the house about imports, sizes and names of modules."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("enrichment", "handler", "events")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

AWS = {"boto3", "botocore", "aws_lambda_powertools"}
# What builds a bundle, and must never be needed to use one.
BUILDERS = {"torch", "transformers", "optimum", "sentence_transformers"}
TOOLS = {"onnx", "sklearn", "scipy"}


def _name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, *, inside_functions: bool = True) -> Iterator[str]:
    """The full names of what a module imports."""
    package = _name(path).split(".") if path.name == "__init__.py" else _name(path).split(".")[:-1]
    stack: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))


def _offenders(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in _imports(path)
        if any(name == banned or name.startswith(f"{banned}.") for banned in forbidden)
    ]


def _of(*packages: str) -> list[Path]:
    return [path for path in MODULES if any(_name(path).startswith(package) for package in packages)]


def test_the_library_knows_nothing_of_aws() -> None:
    assert _of("enrichment")
    assert _offenders(_of("enrichment"), AWS | {"handler", "events"}) == []


def test_only_the_export_imports_what_builds_bundles() -> None:
    paths = [path for path in MODULES if not _name(path).startswith("enrichment.export")]
    assert _offenders(paths, BUILDERS | TOOLS | {"enrichment.export"}) == []


def test_the_search_for_imports_sees_them() -> None:
    export = _of("enrichment.export")
    assert {offender.rsplit(" ", 1)[1].split(".")[0] for offender in _offenders(export, BUILDERS | TOOLS)} >= {
        "optimum",  # imported inside a function
        "sentence_transformers",
        "onnx",
        "sklearn",
    }
    assert any(name.startswith("enrichment.") for name in _imports(ROOT / "enrichment" / "__init__.py"))
    assert _offenders(_of("handler"), AWS)


# -- processes in which something cannot be imported -------------------------------------------------------------------

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
    raise SystemExit("the block lets everything through")
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


def test_onnxruntime_is_imported_in_one_place() -> None:
    # enrichment/session.py keeps it from reporting to its maker, which must come first.
    importing = [path for path in MODULES if any(n.startswith("onnxruntime") for n in _imports(path))]
    assert {_name(path) for path in importing if "export" not in path.parts} == {"enrichment.session"}


def test_the_handler_runs_without_what_builds_bundles(bundle: Path) -> None:
    done = _run(BLOCK + "import handler.app" + ENRICH, str(bundle), ",".join(BUILDERS | TOOLS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["enrichment"]["intent"] == "login_issue"


def test_the_library_runs_without_aws_and_without_the_shell(bundle: Path) -> None:
    others = {"handler", "events", "pydantic_settings", "typer", "rich"}
    done = _run(BLOCK + ENRICH, str(bundle), ",".join(AWS | BUILDERS | TOOLS | others))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["enrichment"]["intent"] == "login_issue"


# -- importing does nothing --------------------------------------------------------------------------------------------

WATCH = """
import collections.abc, importlib, json, os, sys

roots, modules, others = map(json.loads, sys.argv[1:])
KINDS = ("open", "os.", "socket.", "subprocess.", "shutil.", "glob.", "tempfile.", "env")
for name in others:  # what these do while they are imported is their own affair
    importlib.import_module(name)

found, watching = [], False

def watch(event, arguments):
    if not watching or not event.startswith(KINDS):
        return
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        # The import system itself, or a foreign module that is being imported; and pydantic, which asks whether it
        # has plug-ins whenever a model is declared.
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


def _import_watched(modules: list[str], others: list[str], home: Path) -> list[str]:
    roots = [str(home / package) for package in PACKAGES] if home == ROOT else [str(home)]
    done = _run(WATCH, *map(json.dumps, (roots, modules, others)), home=home)
    assert done.returncode == 0, done.stderr
    return [str(line) for line in json.loads(done.stdout) if "ORT_DISABLE_TELEMETRY" not in line]  # set, not read


def test_importing_reads_no_environment_disk_or_network() -> None:
    quiet = [path for path in MODULES if _name(path) != "handler.main"]  # whose purpose that is
    foreign = {name.partition(".")[0] for path in quiet for name in _imports(path, inside_functions=False)} - {
        *PACKAGES,
        "__future__",
    }
    assert _import_watched([_name(path) for path in quiet], sorted(foreign), ROOT) == []


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
        ("socket.gethostbyname('localhost')", "socket.gethostbyname"),
        ("tempfile.mkdtemp()", "tempfile.mkdtemp"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("def read(path=open(__file__).close()): pass", "open"),
    ],
)
def test_the_watch_sees_what_a_module_does(tmp_path: Path, line: str, event: str) -> None:
    others = ["os", "pathlib", "socket", "subprocess", "tempfile"]
    (tmp_path / "naughty.py").write_text(f"import {', '.join(others)}\n{line}\n")
    (tmp_path / "good.py").write_text("import naughty\n")
    found = _import_watched(["good"], others, tmp_path)
    assert any(entry.startswith(f"naughty.py:2: {event}") for entry in found), found


# -- sizes and names ---------------------------------------------------------------------------------------------------


def test_no_module_is_longer_than_250_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 250} == {}


def test_no_module_is_named_by_what_it_is_not() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "base", "core"}
    parts = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & vague
