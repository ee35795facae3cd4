"""The Flox environments without Flox: manifests, profile functions, services, the image script."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from handler.local import EmbeddedStack
from handler.settings import WorkerSettings
from tests.infrastructure.flox_manifest import problems

REPO = Path(__file__).resolve().parents[2]
MAIN = REPO / ".flox"
ENVIRONMENTS = [MAIN, *sorted(REPO.glob("deploy/*/.flox"))]
EXPRESSIONS = sorted((MAIN / "pkgs").glob("*.nix"))
PYPROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
SERVICES = ["aws", "ticket-generator", "ticket-processor"]
Manifest = dict[str, Any]


def manifest_of(environment: Path) -> Manifest:
    return tomllib.loads((environment / "env" / "manifest.toml").read_text(encoding="utf-8"))


def composed() -> Manifest:
    """The services and vars of the development environment, merged as by Flox: the including manifest overrides."""
    main = manifest_of(MAIN)
    included = [manifest_of(REPO / entry["dir"] / ".flox") for entry in main["include"]["environments"]]
    return {
        table: {name: value for manifest in [*included, main] for name, value in manifest.get(table, {}).items()}
        for table in ("services", "vars")
    }


def relative(path: Path) -> str:
    return str(path.relative_to(REPO))


# Manifests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=relative)
def test_environment_is_valid(environment: Path) -> None:
    assert problems(manifest_of(environment)) == []
    found = json.loads((environment / "env.json").read_text(encoding="utf-8"))
    assert found.keys() == {"name", "version"}
    assert found["version"] == 1
    assert re.fullmatch(r"[a-z][a-z0-9-]*", found["name"])
    ignored = (environment / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ignored == ["run/", "cache/", "lib/", "log/", "!env/"]


def test_environment_names_are_unique() -> None:
    names = [json.loads((path / "env.json").read_text(encoding="utf-8"))["name"] for path in ENVIRONMENTS]
    assert len(set(names)) == len(names) >= 3


@pytest.mark.parametrize(
    ("addition", "problem"),
    [
        ({"service": {}}, "manifest.service: unknown"),
        ({"version": 2}, "manifest.version: must be one of [1]"),
        ({"vars": {"BATCH_SIZE": 10}}, "manifest.vars.BATCH_SIZE: must be of type str"),
        ({"install": {"git": {"pkg-paths": "git"}}}, "manifest.install.git.pkg-paths: unknown"),
        ({"install": {"git": {}}}, "manifest.install.git.pkg-path: missing"),
        (
            {"install": {"git": {"pkg-path": "git", "priority": True}}},
            "manifest.install.git.priority: must be of type int",
        ),
        ({"services": {"a": {"command": "b", "depends_on": ["c"]}}}, "manifest.services.a.depends_on: unknown"),
        ({"services": {"a": {}}}, "manifest.services.a.command: missing"),
        ({"services": {"a": {"command": "b", "is-daemon": True}}}, "services.a: a daemon needs shutdown.command"),
        ({"include": {"environments": [{"floxhub": "a/b"}]}}, "manifest.include.environments[0].floxhub: unknown"),
        ({"include": {"environments": ["a"]}}, "manifest.include.environments[0]: must be a table"),
        ({"options": {"systems": ["linux"]}}, "manifest.options.systems[0]: must be one of"),
        ({"options": {"systems": "x86_64-linux"}}, "manifest.options.systems: must be a list"),
        ({"containerize": {"config": {"env": ["A=b"]}}}, "manifest.containerize.config.env: unknown"),
        ({"hook": {"on-activation": ""}}, "manifest.hook.on-activation: unknown"),
    ],
)
def test_invalid_manifest_is_detected(addition: Manifest, problem: str) -> None:
    assert problems({"version": 1}) == []
    assert any(found.startswith(problem) for found in problems({"version": 1} | addition))


def test_included_environments_exist() -> None:
    directories = [entry["dir"] for entry in manifest_of(MAIN)["include"]["environments"]]
    assert directories == ["deploy/generator", "deploy/processor"]
    for directory in directories:
        included = manifest_of(REPO / directory / ".flox")
        assert "include" not in included  # an environment that includes a local folder cannot be pushed
        assert "activate" not in included["options"]  # its mode would also apply to the development environment


def test_development_uses_the_python_of_production() -> None:
    assert manifest_of(MAIN)["install"]["python313"] == {"pkg-path": "python313"}
    assert all("python313" in path.read_text(encoding="utf-8") for path in EXPRESSIONS)


def test_pushed_environment_sets_no_worker_settings() -> None:
    # Vars override the environment of an activation, including a ConfigMap's values.
    settings = {name.upper() for name in WorkerSettings.model_fields}
    assert settings.isdisjoint(manifest_of(REPO / "deploy" / "processor" / ".flox").get("vars", {}))
    for name in settings & composed()["vars"].keys():
        assert composed()["vars"][name].startswith(f"${{{name}:-"), f"{name} cannot be overridden in a session"


def test_vars_do_not_depend_on_each_other() -> None:
    # Flox does not guarantee the order in which it sets them.
    for name, value in composed()["vars"].items():
        used = set(re.findall(r"\$\{?([A-Z_]+)", value)) - {name}
        assert used <= {"FLOX_ENV_CACHE", "FLOX_ENV_PROJECT", "MODEL_CACHE_DIR"}, name


# The function's image ------------------------------------------------------------------------------------------------


LAMBDA = REPO / "deploy" / "lambda"


def test_image_allows_snapstart_and_has_no_settings() -> None:
    manifest = manifest_of(LAMBDA / ".flox")
    assert manifest.keys() == {"version", "containerize", "options"}
    assert json.loads((LAMBDA / ".flox" / "env.json").read_text(encoding="utf-8"))["name"] == "ticket-lambda"
    assert "\nIMAGE ?= ticket-lambda:latest\n" in (REPO / "Makefile").read_text(encoding="utf-8")
    assert manifest["containerize"]["config"]["labels"]["com.amazonaws.lambda.feature.snapstart"] == "Allow"


def make_image(folder: Path, *programs: str) -> subprocess.CompletedProcess[str]:
    """Run deploy/lambda/image.sh in a copy of the repository, with programs that record their arguments."""
    copy, path = folder / "repository", folder / "bin"
    shutil.copytree(LAMBDA, copy / "deploy" / "lambda")
    path.mkdir()
    for name in ("bash", "cp", "dirname", "mkdir", "readlink", "rm", "uname"):
        (path / name).symlink_to(shutil.which(name) or name)
    for name in programs:
        (path / name).write_text(
            f'#!/bin/sh\necho "{name} $@" >>log\n'
            '[ "$1" = build ] || exit 0\n'
            'for name in ticket-lambda ticket-bundle; do : >"$name"; ln -sf "$PWD/$name" "result-$name"; done\n'
        )
        (path / name).chmod(0o755)
    (path / "ln").symlink_to(shutil.which("ln") or "ln")
    return subprocess.run(
        [copy / "deploy" / "lambda" / "image.sh"],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("programs", "message"), [([], "there is no flox"), (["flox"], "there is no docker")])
def test_missing_program_is_a_one_line_error(programs: list[str], message: str, tmp_path: Path) -> None:
    ran = make_image(tmp_path, *programs)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "repository" / "log").exists()


def test_image_contains_only_the_built_packages(tmp_path: Path) -> None:
    ran = make_image(tmp_path, "flox", "docker")
    assert ran.returncode == 0, ran.stderr
    repository = tmp_path / "repository"
    assert (repository / "log").read_text().splitlines() == [
        "flox build ticket-lambda ticket-bundle",
        "flox containerize -d build/lambda --mode run --runtime docker --tag latest",
    ]
    manifest = manifest_of(repository / "build" / "lambda" / ".flox")
    assert problems(manifest) == []
    built = {name: package["store-path"] for name, package in manifest["install"].items()}
    assert built == {name: str(repository / name) for name in ("ticket-lambda", "ticket-bundle")}
    assert {path.stem for path in EXPRESSIONS} >= built.keys()
    assert "install" not in manifest_of(LAMBDA / ".flox")  # the committed manifest has no store paths


# Profile --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(stack: EmbeddedStack, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A function that runs a line in bash as after an activation, while the services run."""
    file = tmp_path / "stack.env"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items())
    file.write_text(f"{exports}STACK_PID={os.getpid()}\n")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "HOME": str(tmp_path),
        "FLOX_ENV_PROJECT": str(REPO),
        "STACK_ENV_FILE": str(file),
    }

    def run(line: str) -> subprocess.CompletedProcess[str]:
        script = f"set -u\n{manifest_of(MAIN)['profile']['bash']}\n{line}"
        return subprocess.run(
            ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_zsh_and_bash_have_the_same_functions() -> None:
    profile = manifest_of(MAIN)["profile"]
    assert profile.keys() == {"bash", "zsh"}
    assert profile["zsh"] == profile["bash"]


def test_functions_show_tickets(
    stack: EmbeddedStack, shell: Callable[[str], subprocess.CompletedProcess[str]], request: pytest.FixtureRequest
) -> None:
    created = 7_000_000_000  # other tests share the table: these are the newest
    labels = {"flox-1": ("critical", "NEGATIVE"), "flox-2": ("high", "POSITIVE"), "flox-3": ("low", "NEGATIVE")}
    table, dynamodb = stack.outputs["TableName"], stack.client("dynamodb")
    for number, (ticket_id, (urgency, sentiment)) in enumerate(labels.items()):
        values = {"ticket_id": ticket_id, "urgency": urgency, "sentiment": sentiment, "subject": "a subject"}
        item = {**{name: {"S": value} for name, value in values.items()}, "created_at": {"N": str(created - number)}}
        dynamodb.put_item(TableName=table, Item=item)
        key = {name: item[name] for name in ("ticket_id", "created_at")}
        request.addfinalizer(functools.partial(dynamodb.delete_item, TableName=table, Key=key))

    def shown(line: str) -> list[str]:
        ran = shell(f"{line} --since 2150-01-01 --json")
        assert ran.returncode == 0, ran.stderr
        return [json.loads(row)["ticket_id"] for row in ran.stdout.splitlines()]

    assert shown("show-results") == ["flox-1", "flox-2", "flox-3"]
    assert shown("show-urgent") == ["flox-1", "flox-2"]
    assert shown("show-sentiment negative") == ["flox-1", "flox-3"]
    assert shown("show-sentiment positive") == ["flox-2"]
    assert "flox-1" in shell("show-sentiment").stdout
    # The emulator's credentials do not remain in the shell.
    assert shell("show-results >/dev/null; echo ${AWS_ACCESS_KEY_ID-none}").stdout == "none\n"


def blocks(page: Path) -> list[list[str]]:
    """The blocks of shell commands on a page, as lines."""
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [[line.strip() for line in block.splitlines()] for block in found]


@pytest.mark.parametrize("page", [REPO / "docs" / "flox.md", REPO / "docs" / "kubernetes.md"], ids=relative)
def test_every_command_block_is_run_or_marked(page: Path) -> None:
    for first, *commands in blocks(page):
        assert commands
        tests = re.match(r"# Run by (tests/\S+\.py)", first)
        assert (REPO / tests[1]).is_file() if tests else first.startswith("# Not run here: needs "), first


def test_documented_functions_run(shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    (lines,) = [
        lines for first, *lines in blocks(REPO / "docs" / "flox.md") if first.endswith("in bash and without Flox.")
    ]
    assert len(lines) == 5
    for line in lines:
        command = line.partition("#")[0].strip()
        ran = shell("demo --dry-run" if command == "demo" else command)
        assert ran.returncode == 0, f"{line}: {ran.stderr}"


def test_demo_function_runs_make(shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    ran = shell("demo --dry-run")
    assert ran.returncode == 0, ran.stderr
    assert "handler.local.demo" in ran.stdout


def test_functions_report_stopped_services(
    shell: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    message = "error: the AWS services are not running; start them with: flox services start\n"
    # Not started, and killed (then its file still exists).
    for line in ('rm "$STACK_ENV_FILE"; show-results', f'echo STACK_PID={2**22} >"$STACK_ENV_FILE"; show-urgent'):
        ran = shell(line)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", message)


# Services -------------------------------------------------------------------------------------------------------------


def test_services_run_in_the_foreground() -> None:
    assert sorted(composed()["services"]) == SERVICES
    for service in composed()["services"].values():
        assert service.keys() == {"command"}
        last = service["command"].strip().splitlines()[-1]
        assert last.startswith("exec "), last
        subprocess.run(["bash", "-n", "-c", service["command"]], check=True)


@contextmanager
def started(name: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service in bash, as Flox does; at the end it gets SIGTERM and must exit with 0."""
    command = composed()["services"][name]["command"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()
    assert process.returncode == 0, log.read_text(encoding="utf-8")


def wait_for(seconds: float, found: Callable[[], Any], logs: Path) -> Any:
    """Wait until `found` returns something and return it; fail with the logs after the timeout."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.1)
    return pytest.fail(
        "\n".join(f"{log.name}: {log.read_text(encoding='utf-8')[-2000:]}" for log in logs.glob("*.log"))
    )


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
def activated(bundle: Path, tmp_path: Path) -> dict[str, str]:
    """The environment after an activation in a shell: the vars, expanded by bash as by Flox."""
    outer = {
        "PATH": os.defpath,
        "HOME": str(tmp_path),
        "FLOX_ENV_PROJECT": str(REPO),
        "FLOX_ENV_CACHE": str(tmp_path / "cache"),
        "STACK_PORT": "0",
        "HEALTH_PORT": free_port(),
        "MODEL_BUNDLE": bundle.as_uri(),
        "BUNDLE": str(bundle),  # the Makefile's variable: do not build this bundle
    }
    exports = "".join(f'export {name}="{value}"\n' for name, value in composed()["vars"].items())
    shown = subprocess.run(["bash", "-c", f"{exports}env -0"], env=outer, check=True, capture_output=True, text=True)
    variables = dict(line.split("=", 1) for line in shown.stdout.split("\0") if line)
    # The tests may run in a virtual environment other than make's.
    return variables | {"TICKET_PROGRAMS": str(Path(sys.executable).parent)}


def test_services_enrich_tickets(activated: dict[str, str], tmp_path: Path) -> None:
    stack, health = Path(activated["STACK_ENV_FILE"]), f"http://127.0.0.1:{activated['HEALTH_PORT']}/readyz"
    stack.parent.mkdir()
    # The file of a killed stack: it must not be used.
    stack.write_text(f"export AWS_ENDPOINT_URL=http://127.0.0.1:9 RAW_BUCKET=gone\nSTACK_PID={2**22}\n")

    with ExitStack() as services:
        waiting = [
            services.enter_context(started(name, activated, tmp_path / f"{name}.log"))
            for name in ("ticket-processor", "ticket-generator")
        ]
        time.sleep(0.5)
        assert [service.poll() for service in waiting] == [None, None]
        with started("aws", activated, tmp_path / "aws.log"):
            wait_for(60, lambda: "gone" not in stack.read_text(encoding="utf-8"), tmp_path)
            sourced = subprocess.run(
                ["bash", "-c", f". '{stack}' && env -0"], env={}, check=True, capture_output=True, text=True
            )
            shared = dict(line.split("=", 1) for line in sourced.stdout.split("\0") if line)
            table = boto3.session.Session(
                shared["AWS_ACCESS_KEY_ID"], shared["AWS_SECRET_ACCESS_KEY"], region_name=shared["AWS_DEFAULT_REGION"]
            ).client("dynamodb", endpoint_url=shared["AWS_ENDPOINT_URL"])
            item, *_ = wait_for(60, lambda: table.scan(TableName=shared["TABLE_NAME"])["Items"], tmp_path)
            table.close()
            assert item["ticket_id"]["S"].startswith("TCK-")
            with urllib.request.urlopen(health, timeout=5) as answer:
                assert answer.status == 200
            services.close()  # the worker and the generator end before the services that they use
    assert not stack.exists()
