"""`bundle.json`: the manifest of a model bundle.

The manifest has the size and sha256 of every file, and the source and settings of every model. The sha256 of the
canonical manifest is the bundle's digest, so two bundles with the same digest give the same results.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from enrichment.errors import BundleInvalid

__all__ = [
    "MANIFEST",
    "AbstractiveSpec",
    "ClassifierSpec",
    "EncoderSpec",
    "ExtractiveSpec",
    "FileSpec",
    "GenerationSpec",
    "HeadSpec",
    "Manifest",
    "ModelsSpec",
    "ReferenceSpec",
    "canonical",
    "read_manifest",
]

MANIFEST: Final = "bundle.json"
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PlattScaling = tuple[Annotated[float, Field(gt=0)], float]  # slope and offset


class _Spec(BaseModel):
    # Only Manifest validates; deferred, pydantic builds one validator instead of one for each class.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


class FileSpec(_Spec):
    """A file's size in bytes and its hash."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class _ModelSpec(_Spec):
    """A model: its tokenizer and the source of its weights."""

    tokenizer: str
    source: str
    revision: str
    source_sha256: Sha256
    license: str
    precision: Literal["int8", "fp32"]


class _FullSpec(_ModelSpec):
    """A model of the full profile; `words` is its embedding, `pinned` whether it has the pinned weights."""

    words: str
    pinned: bool


class EncoderSpec(_ModelSpec):
    """The sentence encoder; its graph's inputs are input_ids and attention_mask."""

    file: str
    pooling: Literal["mean"]
    dimensions: int
    max_tokens: Annotated[int, Field(ge=8)]
    max_windows: Annotated[int, Field(ge=1)]


class HeadSpec(_Spec):
    """A linear classifier over the encoder's output and the lexical features; `file` holds its arrays by task name.

    A confidence below `threshold` marks a ticket for review, unless the bundle has one threshold for all tasks.
    `calibration`: see `enrichment.classify.calibrated`.
    """

    file: str
    labels: Annotated[list[str], Field(min_length=2)]
    fallback: str
    threshold: Annotated[float, Field(ge=0, le=1)]
    calibration: PlattScaling | None = None
    training: dict[str, Any]


class ClassifierSpec(_FullSpec):
    """A separate sequence classifier with its own tokenizer; its embedding is part of the graph `file`.

    `labels` are in the order of its outputs. The result is neutral if the last label's probability is within the bounds
    `neutral`.
    """

    kind: Literal["sequence_classifier"]
    file: str
    max_tokens: Annotated[int, Field(ge=8)]
    labels: Annotated[list[str], Field(min_length=2, max_length=2)]
    neutral: tuple[Annotated[float, Field(ge=0, le=0.5)], Annotated[float, Field(ge=0.5, le=1)]]
    fallback: str
    threshold: Annotated[float, Field(ge=0, le=1)]


class GenerationSpec(_Spec):
    """How summaries are generated; the fields are those of a generation_config.json."""

    num_beams: Annotated[int, Field(ge=1, le=32)]
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram_size: Annotated[int, Field(ge=0)]
    min_length: Annotated[int, Field(ge=0)]
    max_length: Annotated[int, Field(ge=3)]
    decoder_start_token_id: int
    eos_token_id: int
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None


class AbstractiveSpec(_FullSpec):
    """The abstractive summary: an encoder and a decoder that share the file `words`."""

    kind: Literal["abstractive"]
    encoder: str
    decoder: str
    max_source_tokens: Annotated[int, Field(ge=8)]
    max_tokens: Annotated[int, Field(ge=1)]
    min_words: Annotated[int, Field(ge=0)]
    generation: GenerationSpec


class ExtractiveSpec(_Spec):
    """The extractive summary: sentences of the ticket, at most `max_tokens` tokens."""

    kind: Literal["extractive"]
    max_tokens: Annotated[int, Field(ge=1)]
    min_words: Annotated[int, Field(ge=0)]


class ModelsSpec(_Spec):
    """All models of a bundle, by task."""

    encoder: EncoderSpec
    # Bundles that were built before November 2026 name it `cues`.
    features: Annotated[str, Field(validation_alias=AliasChoices("features", "cues"))]
    intent: HeadSpec
    urgency: HeadSpec
    sentiment: HeadSpec | ClassifierSpec
    summary: Annotated[ExtractiveSpec | AbstractiveSpec, Field(discriminator="kind")]
    # A product of the three confidences below this marks a ticket for review; without it, each task's threshold does.
    review: Annotated[float, Field(gt=0, le=1)] | None = None

    def of(self, task: Literal["intent", "urgency", "sentiment"]) -> HeadSpec | ClassifierSpec:
        """The classifier of a task."""
        return {"intent": self.intent, "urgency": self.urgency, "sentiment": self.sentiment}[task]


class ReferenceSpec(_Spec):
    """The distribution of the training texts: shares of labels per task and of languages, and the mean embedding."""

    texts: Annotated[int, Field(ge=1)]
    labels: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]]
    languages: dict[str, Annotated[float, Field(ge=0, le=1)]]
    embedding: list[float]


class Manifest(_Spec):
    """`bundle.json`."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    profile: Literal["compact", "full"]
    files: dict[str, FileSpec]
    models: ModelsSpec
    # ISO 639-1, what the models know; bundles that were built before December 2026 lack the field and know English.
    languages: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]], Field(min_length=1)] = ["en"]
    # For `tickets drift`; bundles that were built before November 2026 have none.
    reference: ReferenceSpec | None = None
    verification: dict[str, Any]

    def version(self, digest: str) -> str:
        """The `model_version` of an enriched ticket; `digest` is the manifest's."""
        return f"{self.name}@{digest[:12]}"

    @property
    def embedding_model(self) -> str:
        """`<name>@<12 digits of a digest>` of what computes the embeddings: only those of one model can be compared.

        The digest covers the encoder's graph and tokenizer and how they are used, but not the classifiers: a bundle
        with other classifiers has the same embeddings. Raises BundleInvalid if the manifest does not list the files.
        """
        encoder = self.models.encoder
        try:
            hashes = {"graph": self.files[encoder.file].sha256, "tokenizer": self.files[encoder.tokenizer].sha256}
        except KeyError as error:
            raise BundleInvalid(
                f"{MANIFEST} uses the file {error}, but does not list it; rebuild the bundle"
            ) from error
        used = {"pooling": encoder.pooling, "dimensions": encoder.dimensions, "max_tokens": encoder.max_tokens}
        digest = hashlib.sha256(canonical({**hashes, **used})).hexdigest()
        return f"{encoder.source.rpartition('/')[2]}@{digest[:12]}"


def canonical(manifest: dict[str, Any]) -> bytes:
    """The canonical form of a manifest, whose sha256 is the digest: sorted keys, no spaces, UTF-8."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_manifest(raw: bytes, place: str) -> tuple[Manifest, str]:
    """Parse bundle.json; return the manifest and its digest. `place` names it in errors. Raises BundleInvalid."""
    try:
        data = json.loads(raw)
        manifest = Manifest.model_validate(data)
        digest = hashlib.sha256(canonical(data)).hexdigest()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleInvalid(
            f"{place}/{MANIFEST}: {where}: {first['msg']}; build the bundle with this version of the library"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{place}/{MANIFEST} is not JSON ({error}); copy or build the bundle again") from error
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleInvalid(
                f"{place}/{MANIFEST} lists {name!r}, which is no name of a file in its folder; rebuild the bundle"
            )
    return manifest, digest
