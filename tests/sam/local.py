"""`sam local` with the image: the function runs in a container and uses the embedded stack.

python -m tests.sam.local events/one-ticket.json
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from handler.local import EmbeddedStack
from tests.sam.relay import Relay
from tests.support.cases import EVENTS, Answer, load_cases

REPOSITORY = Path(__file__).resolve().parents[2]
SAM = REPOSITORY / ".venv-sam" / "bin" / "sam"
IMAGE = "ticket-enrichment:docker"
FUNCTION = "EnrichmentFunction"
_REPORT = re.compile(r"^.*REPORT RequestId: ", re.MULTILINE)


class SamLocal:
    """The sam command in a scratch folder, with the stack's resource names as environment variables."""

    def __init__(self, stack: EmbeddedStack, url: str, scratch: Path) -> None:
        self._scratch = scratch
        environment = stack.environment()
        names = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
        names["AWS_ENDPOINT_URL"] = url
        # sam resolves neither the names of deployed resources nor conditions.
        (scratch / "names.json").write_text(json.dumps({FUNCTION: names}))
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "DOCKER_HOST", "LANG") if name in os.environ},
            **{name: environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
            "AWS_DEFAULT_REGION": environment["AWS_DEFAULT_REGION"],
            "HOME": str(scratch),
            "SAM_CLI_TELEMETRY": "0",
        }
        template = ["--template", str(REPOSITORY / "template.yaml"), "--env-vars", str(scratch / "names.json")]
        self._options = [*template, "--skip-pull-image", "--parameter-overrides"]
        self._options += [f"ParameterKey=ImageUri,ParameterValue={IMAGE}"]

    def command(self, *arguments: str) -> list[str]:
        """The full command line."""
        return [str(SAM), "local", *arguments, *self._options]

    def invoke(self, event: Path) -> Answer:
        """Run `sam local invoke` with an event; sam's exit code does not depend on the function's result."""
        ran = subprocess.run(
            self.command("invoke", FUNCTION, "--event", str(event)),
            env=self._environment,
            cwd=self._scratch,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = ran.stdout.strip().splitlines()
        try:
            return Answer(json.loads(lines[-1]), ran.stderr + ran.stdout)
        except (IndexError, ValueError) as error:
            raise AssertionError(f"no response of the function in: {ran.stdout}{ran.stderr}") from error

    @contextmanager
    def started(self) -> Iterator[StartedSam]:
        """Run `sam local start-lambda` with one warm container for the duration of the block."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        log = self._scratch / "start-lambda.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command("start-lambda", "--port", str(port), "--warm-containers", "EAGER"),
                env=self._environment,
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 120
            while "Press CTRL+C to quit" not in log.read_text(errors="replace"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield StartedSam(port, log)
        finally:
            process.terminate()  # this also removes its container
            process.wait(60)


class StartedSam:
    """A running `sam local start-lambda`, called through Lambda's API."""

    def __init__(self, port: int, log: Path) -> None:
        self._log = log
        make: Any = boto3.session.Session("sam", "sam", region_name="us-east-1").client
        settings = Config(read_timeout=120, retries={"total_max_attempts": 1}, proxies={})
        self._client = make("lambda", endpoint_url=f"http://127.0.0.1:{port}", config=settings)

    def invoke(self, event: Any) -> Answer:
        """Invoke the function with an event."""
        begin = len(self._log.read_text(errors="replace"))
        given = self._client.invoke(FunctionName=FUNCTION, Payload=json.dumps(event))
        with given["Payload"] as payload:
            response = json.loads(payload.read())
        deadline = time.monotonic() + 60
        while not _REPORT.search(self._log_since(begin)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return Answer(response, self._log_since(begin))

    def _log_since(self, begin: int) -> str:
        return self._log.read_text(errors="replace")[begin:]


@contextmanager
def sam_local(stack: EmbeddedStack, scratch: Path) -> Iterator[SamLocal]:
    """`sam local` with a stack; the images that it builds are removed at the end."""
    port = urlsplit(stack.endpoint_url).port
    assert port is not None
    try:
        with Relay(port) as relay:
            yield SamLocal(stack, relay.url, scratch)
    finally:
        built = ["docker", "image", "ls", "--quiet", "--filter", f"reference={IMAGE.partition(':')[0]}:rapid-*"]
        images = subprocess.run(built, capture_output=True, text=True, check=False).stdout.split()
        if images:
            subprocess.run(["docker", "image", "rm", "--force", *set(images)], capture_output=True, check=False)


def main(path: str) -> None:
    """Print the command, the function's log and its response for one sample event."""
    case = next((case for case in load_cases() if case.name == Path(path).stem), None)
    if case is None:
        sys.exit(f"error: {path} is none of {EVENTS.name}/*.json")
    with EmbeddedStack() as stack, tempfile.TemporaryDirectory() as scratch, sam_local(stack, Path(scratch)) as sam:
        bucket = stack.outputs["RawBucket"]
        for key, body in case.objects.items():
            stack.client("s3").put_object(Bucket=bucket, Key=key, Body=body)
        event = Path(scratch) / f"{case.name}.json"
        event.write_text(json.dumps(case.event_for(bucket)))
        sys.stderr.write(f"{shlex.join(sam.command('invoke', FUNCTION, '--event', str(event)))}\n")
        answer = sam.invoke(event)
    sys.stderr.write(answer.log)
    sys.stdout.write(f"{json.dumps(answer.response)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
