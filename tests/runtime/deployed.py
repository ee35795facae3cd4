"""The function that the template deploys to the embedded stack, in containers, and measurements of its invocations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from handler.local import EmbeddedStack
from tests.runtime.container import LambdaContainer
from tests.runtime.function import Function
from tests.runtime.invocation import Invocation
from tests.support.cases import Answer
from tests.support.stack_harness import StackHarness


@dataclass
class Metrics:
    """Measurements: cold starts in milliseconds, and peak memory in bytes by workload."""

    init_ms: list[float] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)


class Lambda:
    """The deployed function; its configuration comes from the stack, and thus from template.yaml."""

    def __init__(self, stack: EmbeddedStack, image: str, rie: Path, metrics: Metrics) -> None:
        client = stack.client("lambda")
        configuration = client.get_function_configuration(FunctionName=stack.outputs["FunctionName"])
        self.function = Function.from_configuration(configuration, image)
        self.metrics = metrics
        self.rie = rie
        # The endpoint and credentials; everything else is in the function's own configuration.
        self.environment = {k: v for k, v in stack.environment().items() if k not in self.function.environment}
        self._stack = stack

    @contextmanager
    def container(
        self,
        *,
        timeout_seconds: int | None = None,
        memory_mb: int | None = None,
        variables: Mapping[str, str | None] | None = None,
        endpoint_url: str | None = None,
        wrapper: Sequence[str] = (),
    ) -> Iterator[LambdaContainer]:
        """A container of the function with changes; a variable that is None is removed."""
        own = {**self.function.environment, **(variables or {})}
        function = replace(
            self.function,
            environment={name: value for name, value in own.items() if value is not None},
            timeout_seconds=timeout_seconds or self.function.timeout_seconds,
            memory_mb=memory_mb or self.function.memory_mb,
        )
        environment = {**self.environment, **({"AWS_ENDPOINT_URL": endpoint_url} if endpoint_url else {})}
        with LambdaContainer(function, rie=self.rie, environment=environment, wrapper=wrapper) as container:
            yield container

    def invoker(self, container: LambdaContainer) -> Callable[[dict[str, Any]], Answer]:
        """A function that invokes the container for `run_case`. Raises AssertionError if the function fails."""

        def invoke(event: dict[str, Any]) -> Answer:
            return answer(self.recorded(container.invoke(event)))

        return invoke

    def recorded(self, invocation: Invocation) -> Invocation:
        """Record the invocation's cold start, if it had one, and return the invocation."""
        if invocation.init_ms is not None and not invocation.failed:
            self.metrics.init_ms.append(invocation.init_ms)
        return invocation

    def harness(self, container: LambdaContainer) -> StackHarness:
        """Access to the container's stores and queues."""
        invoke = self.invoker(container)
        return StackHarness(self._stack, lambda event, _context: invoke(event).response)


def answer(invocation: Invocation) -> Answer:
    """The function's response and log. Raises AssertionError if it failed."""
    if invocation.failed:
        raise AssertionError(f"the invocation failed: {invocation.payload!r}\n{invocation.log}")
    return Answer(invocation.response, invocation.log)
