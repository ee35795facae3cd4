"""The full profile's models compared with transformers: DistilBERT's logits, and summaries."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from enrichment import Bundle
from enrichment.export.distilbert import classifier_graph
from enrichment.export.sources import DISTILBART, DISTILBERT
from enrichment.export.weights import Precision, Shared, word_arrays
from enrichment.packing import packed
from enrichment.sentiment import SequenceClassifier
from enrichment.session import make_session
from enrichment.summary.summarizer import Summarizer
from tests.parity.small import distilbert
from tests.parity.test_encoder_parity import TICKETS
from tests.support.small_full import write_bundle

# torch and transformers emit deprecation warnings about each other.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = [{}, {"width": 48, "heads": 3, "layers": 1}, {"width": 64, "heads": 2, "layers": 3}]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory, bundle: Path, full_source: Path) -> Bundle:
    """The small bundle in fp32."""
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("fp32") / "full", bundle, full_source, "fp32"))


def _logits(model: Any, folder: Path, precision: Precision, texts: list[Any]) -> Any:
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    table = word_arrays(state["distilbert.embeddings.word_embeddings.weight"], precision)
    words = Shared.write(folder, "words.bin", table)
    graph = classifier_graph(state, model.config.to_dict(), precision, words)
    (folder / "graph").write_bytes(graph.SerializeToString())
    session = make_session(folder / "graph", threads=1)
    return [session.run(["logits"], packed(batch))[0] for batch in (texts, *([text] for text in texts))]


def _ids(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 900, length) for length in (3, 90, 17, 32, 33, 64, 250, 128)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_equal_torch(size: dict[str, int], seed: int, tmp_path: Path) -> None:
    model, texts = distilbert(seed, vocab_size=900, **size), _ids(seed)
    exact = copy.deepcopy(model).double()  # in single precision torch itself is up to 1.4e-4 away from it
    with torch.inference_mode():
        wanted = [exact(torch.tensor(text)[None]).logits[0].numpy() for text in texts]
    assert np.ptp(wanted, axis=0).max() > 0.1, "the texts differ"
    np.testing.assert_allclose(_logits(model, tmp_path, "fp32", texts)[0], wanted, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_batch_logits_equal_single_logits(size: dict[str, int], precision: Precision, tmp_path: Path) -> None:
    together, *alone = _logits(distilbert(7, vocab_size=900, **size), tmp_path, precision, _ids(7))
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


def test_labels_and_probabilities_equal_the_pipeline(fp32: Bundle, full_source: Path) -> None:
    folder = str(full_source / DISTILBERT.name)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    make: Any = pipeline  # its type hints do not allow top_k=None
    pipe = make("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    texts = [*TICKETS[:40], "late " * 600]
    wanted = [{row["label"]: row["score"] for row in rows} for rows in pipe(texts, truncation=True)]
    found = SequenceClassifier.open(fp32, fp32.manifest.models.sentiment).judge(texts)  # type: ignore[arg-type]
    assert [j.probabilities for j in found] == [pytest.approx(row, abs=1e-4) for row in wanted]
    assert [j.truncated for j in found] == [False] * 40 + [True]
    sides = {max(row, key=row.__getitem__) for row in wanted}
    assert sides == {"NEGATIVE", "POSITIVE"}
    for judgement, row in zip(found, wanted, strict=True):
        neutral = 0.45 <= row["POSITIVE"] <= 0.55
        assert judgement.label == ("NEUTRAL" if neutral else max(row, key=row.__getitem__))


def test_summaries_equal_generate(fp32: Bundle, full_source: Path) -> None:
    folder = str(full_source / DISTILBART.name)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    spec = fp32.manifest.models.summary
    texts = [*TICKETS[:10], "a text that is far too long " * 100]
    wanted = []
    for text in texts:
        inputs = tokenizer([text], return_tensors="pt", truncation=True, max_length=256)
        [ids] = model.generate(**inputs, do_sample=False, **spec.generation.model_dump())  # type: ignore[union-attr]
        summary = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        wanted.append(summary if summary[-1:] in {".", "!", "?"} else f"{summary}.")
    found = Summarizer.open(fp32, spec).read(texts)  # type: ignore[arg-type]
    assert [summary.text for summary in found] == wanted
    assert [summary.truncated for summary in found] == [False] * 10 + [True]
    assert len(set(wanted)) > 5
