"""A Lambda function's configuration: what Lambda starts, and with which environment.

Only the standard library is needed, so that LocalStack's Python can import it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MB_PER_CPU = 1769  # megabytes of memory per virtual CPU


@dataclass(frozen=True)
class Function:
    """The configuration of an image function; `environment` is the function's own, without Lambda's variables."""

    image: str
    entry_point: tuple[str, ...]
    command: tuple[str, ...]
    working_directory: str | None
    name: str = "ticket-enrichment"
    version: str = "$LATEST"
    memory_mb: int = 2048
    timeout_seconds: int = 60
    tmp_mb: int = 512
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any], image: str) -> Function:
        """From the response of GetFunctionConfiguration and the image to run; empty overrides stay empty."""
        overrides = (configuration.get("ImageConfigResponse") or {}).get("ImageConfig") or {}
        return cls(
            image,
            tuple(overrides.get("EntryPoint") or ()),
            tuple(overrides.get("Command") or ()),
            overrides.get("WorkingDirectory"),
            name=configuration["FunctionName"],
            version=configuration.get("Version", "$LATEST"),
            memory_mb=configuration["MemorySize"],
            timeout_seconds=configuration["Timeout"],
            tmp_mb=(configuration.get("EphemeralStorage") or {}).get("Size", 512),
            environment=dict((configuration.get("Environment") or {}).get("Variables") or {}),
        )

    @property
    def cpus(self) -> float:
        """The number of cores that Lambda assigns for this memory."""
        return self.memory_mb / MB_PER_CPU

    def variables(self) -> dict[str, str]:
        """The process's environment on Lambda without credentials; the function's own variables take precedence.

        HOME is Lambda's value for images: the folder of a user that the image does not have.
        """
        return {
            "HOME": "/home/sbx_user1051",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "LAMBDA_TASK_ROOT": "/var/task",
            "LAMBDA_RUNTIME_DIR": "/var/runtime",
            **self.environment,
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": self.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory_mb),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(self.timeout_seconds),  # read by RIE
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
        }
