"""The table of enrichment/text/language.npz, made from py3langid's model: `python -m enrichment.export.language`.

py3langid (BSD licence) knows 140 languages by 100,000 byte sequences; loading it takes 0.8 s of CPU time and 77 MB. The
table keeps the languages that tickets are written in, and of each the sequences that are the strongest evidence for it:
0.4 MB, loaded in about 15 ms.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from enrichment.export.heads import write_npz

__all__ = ["main", "table"]

_LANGUAGES: Final = (
    "ar bg bn ca cs da de el en es et fa fi fr gu he hi hr hu hy id it ja ka km kn ko lt lv ml mr ms my ne nl no pa pl "
    "pt ro ru sk sl sr sv ta te th tl tr uk ur uz vi zh"
).split()
_PER_LANGUAGE: Final = 350
_LONGEST: Final = 6  # bytes


def table(identifier: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of language.npz from py3langid's identifier."""
    sequences = _sequences(identifier)
    columns = [identifier.nb_classes.index(language) for language in _LANGUAGES]
    numbers = np.asarray(sorted(sequences))
    logs = np.asarray(identifier.nb_ptc, np.float32)[numbers][:, columns]
    powers = np.exp(logs - logs.max())
    # What a sequence tells for a language: how often it comes there, times how much more often than elsewhere.
    gain = powers * (logs - np.log(powers.mean(1, keepdims=True)) - logs.max())
    chosen = np.unique(np.argsort(-gain, axis=0, kind="stable")[:_PER_LANGUAGE])
    logs = logs[chosen]
    logs -= logs.mean(1, keepdims=True)  # what all languages share decides nothing
    scale = float(np.abs(logs).max()) / 127
    return {
        "languages": np.asarray(_LANGUAGES),
        "lengths": np.asarray([len(sequences[n]) for n in numbers[chosen]], np.uint8),
        "sequences": np.frombuffer(b"".join(sequences[n] for n in numbers[chosen]), np.uint8),
        "weights": np.round(logs / scale).astype(np.int8),
        "scale": np.float32(scale),
    }


def _sequences(identifier: Any) -> dict[int, bytes]:
    """The byte sequence of each of the model's features, read from its automaton, breadth first."""
    found: dict[int, bytes] = {}
    seen = {0}
    states = [(0, b"")]
    for _ in range(_LONGEST):
        following = []
        for state, prefix in states:
            row = identifier._rowbase[state]  # noqa: SLF001 - py3langid has no public way to its features
            for byte in range(256):
                target = identifier.tk_nextmove[row + byte]
                if target in seen:
                    continue
                seen.add(target)
                following.append((target, prefix + bytes([byte])))
        for state, sequence in following:
            if identifier.tk_output[state] >= 0:
                found.setdefault(identifier.tk_output[state], sequence)
        states = following
    return found


def main() -> int:
    """Writes the table beside enrichment/text/language.py."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    path = Path(__file__).parents[1] / "text" / "language.npz"
    arrays = table(LanguageIdentifier.from_model_file(MODEL_FILE))
    write_npz(path, arrays, compress=True)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes, {len(arrays['weights'])} sequences\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
