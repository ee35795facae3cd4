"""Training of the classification branch: a few texts, the whole way from the frozen encoder to committed files."""

from pathlib import Path

import numpy as np

from enrichment import Bundle
from enrichment.classify import TASKS
from enrichment.encoder import Encoder
from enrichment.export import compact
from enrichment.export.corpus import TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.evaluate import cross_validate
from enrichment.export.heads import Shipped
from enrichment.export.quantize import Calibration, quantize_products, quantize_words
from enrichment.export.sources import MINILM, find_model
from enrichment.export.train import shipped
from enrichment.export.training import Settings, prepare, train
from enrichment.features import LexicalFeatures


def test_a_branch_is_trained_and_the_graph_computes_it(bundle: Path, tmp_path: Path) -> None:
    weights = find_model(MINILM, "package")
    taxonomy = Taxonomy.read(TAXONOMY)
    lexical = LexicalFeatures(taxonomy.lexicon, taxonomy.phrases)
    own = read_labelled(TICKETS, taxonomy)
    public = [Labelled(item.text, item.labels, f"author {i % 10}") for i, item in enumerate(own[-60:])]
    graph = compact.exported_graph(weights)
    quantize_products(graph, Calibration.read().exponents)
    quantize_words(graph)
    data = prepare(graph, weights, lexical, {"own": own[:120], "public": public}, taxonomy.labels)
    settings = Settings(rank=2, epochs=2, mix={"own": 1, "public": 2})
    trained = train(data, range(len(data.texts)), weights, settings, seed=1)
    rows = range(120, 180)
    logits = trained.logits(rows)
    right = np.mean([data.targets["intent"][row, logits["intent"][row - 120].argmax()] > 0 for row in rows])
    assert right > 0.3  # of ten labels; untrained, it would be a tenth

    held_out = cross_validate(data, weights, Settings(rank=2, mix={"own": 1}), lambda _: None, public=False)
    files = tmp_path / "classifiers.npz", tmp_path / "classifiers.json"
    shipped(trained, held_out, lexical.names, settings, {"tickets.jsonl": "0" * 64}).write(*files)
    again = Shipped.read(*files)

    # The exported graph with the committed coefficients says what the trained branch says, but for quantization.
    (tmp_path / "encoder.onnx").write_bytes(compact.encoder_graph(weights, "int8", again.adapter))
    (tmp_path / "tokenizer.json").write_bytes((weights / "tokenizer.json").read_bytes())
    encoder = compact.open_encoder(tmp_path)
    assert encoder.features == Encoder.open(Bundle.open(bundle)).features
    for task in TASKS:
        head = again.head(task, lexical)
        for row, item in enumerate(public[:20]):
            [encoded] = encoder.encode(encoder.tokenize([item.text]), [[]])
            found = np.concatenate([encoded.features, lexical.features(item.text)]) @ head.weights + head.bias
            np.testing.assert_allclose(found, logits[task][row], atol=0.25)
