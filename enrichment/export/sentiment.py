"""What `enrichment.export.train` leaves in the repository: the sentiment head, and the quantiser's exponents.

Both are small text files. They are trained on data that does not lie in the repository, so an export only reads them,
and refuses the head when the encoder is not the very one that it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from enrichment.cues import SURFACE, Cues
from enrichment.export.heads import FittedHead
from enrichment.export.sources import ExportError

__all__ = ["CALIBRATION", "SENTIMENT", "Calibration", "SentimentHead"]

CALIBRATION: Final = Path(__file__).parent / "calibration.json"
SENTIMENT: Final = Path(__file__).parent / "sentiment.json"


@dataclass(frozen=True)
class Calibration:
    """The smoothing exponents of the encoder's products; see enrichment.export.quantize."""

    exponents: Mapping[str, Sequence[int]]

    @classmethod
    def read(cls, path: Path = CALIBRATION) -> Calibration:
        """Reads the committed file."""
        return cls({name: list(map(int, row.split())) for name, row in json.loads(path.read_text()).items()})

    def write(self, path: Path = CALIBRATION) -> None:
        """Writes it, a product a line."""
        rows = {name: " ".join(map(str, row)) for name, row in self.exponents.items()}
        path.write_text(json.dumps(rows, indent=0) + "\n")


@dataclass(frozen=True)
class SentimentHead:
    """A fitted head, the encoders (sha256 of their graphs) and the cues that it belongs to."""

    head: FittedHead
    encoders: Sequence[str]
    cues: Sequence[str]

    @classmethod
    def read(cls, path: Path = SENTIMENT) -> SentimentHead:
        """Reads the committed file."""
        data: dict[str, Any] = json.loads(path.read_text())
        weights = np.asarray([list(map(float, row.split())) for row in data["weights"]], np.float32).T
        head = FittedHead(
            data["labels"],
            np.ascontiguousarray(weights),
            np.asarray(data["bias"], np.float32),
            data["threshold"],
            data["training"],
        )
        return cls(head, data["encoders"], data["cues"])

    def write(self, path: Path = SENTIMENT) -> None:
        """Writes it with five significant digits: small enough to be read in a review."""
        data = {
            "labels": self.head.labels,
            "threshold": self.head.threshold,
            "training": self.head.training,
            "encoders": list(self.encoders),
            "cues": list(self.cues),
            "bias": [float(f"{value:.5g}") for value in self.head.bias.tolist()],
            "weights": [" ".join(f"{value:.5g}" for value in column) for column in self.head.weights.T.tolist()],
        }
        path.write_text(json.dumps(data, indent=1) + "\n")

    def fitted(self, encoder_sha256: str, cues: Cues) -> FittedHead:
        """The head, for this encoder and these cues.

        A taxonomy of one's own has other groups of cues than ours: those that the head does not know weigh nothing,
        those that are gone count as cues that never occur. Raises ExportError for another encoder, or other features.
        """
        rows = {name: len(self.head.weights) - len(self.cues) + i for i, name in enumerate(self.cues)}
        if encoder_sha256 not in self.encoders or not rows.keys() >= set(SURFACE):
            raise ExportError(
                "the sentiment head was trained for another encoder or other cues; train it again: "
                "python -m enrichment.export.train --sst2 FILE"
            )
        nothing = np.zeros(len(self.head.labels), np.float32)
        ours = [self.head.weights[rows[name]] if name in rows else nothing for name in cues.names]
        weights = np.concatenate([self.head.weights[: -len(self.cues)], np.asarray(ours, np.float32)])
        return replace(self.head, weights=weights)
