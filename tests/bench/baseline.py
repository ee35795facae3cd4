"""The torch implementation that this project replaces: three models, one ticket at a time.

`prepare(folder)` creates its models: MiniLM from the official weights, DistilBERT and DistilBART in their real sizes
with seeded random weights, because speed does not depend on the values. `python -m tests.bench.baseline FOLDER`
imports and loads all of them and prints the seconds since the interpreter started to run this file.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()
STAMP = "done-2"  # increase the number when the contents change
ENCODER, SENTIMENT, SUMMARY = (
    "all-MiniLM-L6-v2",
    "distilbert-base-uncased-finetuned-sst-2-english",
    "distilbart-cnn-6-6",
)


def prepare(folder: Path) -> None:
    """Create the models' folders once."""
    if (folder / STAMP).exists():
        return
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        DistilBertConfig,
        DistilBertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    from enrichment.export.sources import MINILM, find_model

    minilm = find_model(MINILM, "package")
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(minilm / "tokenizer.json"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
    sentiment = DistilBertForSequenceClassification(DistilBertConfig(id2label={0: "NEGATIVE", 1: "POSITIVE"}))
    summary = BartForConditionalGeneration(
        BartConfig(
            vocab_size=50264,
            encoder_layers=6,
            decoder_layers=6,
            num_beams=4,
            max_length=50,
            min_length=50,
            length_penalty=2.0,
            early_stopping=True,
            no_repeat_ngram_size=3,
            forced_bos_token_id=0,
        )
    )
    for name, model in ((SENTIMENT, sentiment), (SUMMARY, summary)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(minilm, folder / MINILM.name)
    (folder / STAMP).touch()


class TorchBaseline:
    """The loaded models."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

        self.embed = SentenceTransformer(str(folder / ENCODER), device="cpu")
        make: Any = pipeline  # its type hints do not include aliases of tasks
        self.sentiment = make("sentiment-analysis", model=str(folder / SENTIMENT), device="cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / SUMMARY)
        self.summary: Any = AutoModelForSeq2SeqLM.from_pretrained(folder / SUMMARY)

    def enrich(self, text: str, beams: int = 4) -> None:
        """One ticket: embedding, sentiment, and a summary of 50 tokens."""
        self.embed.encode([text])
        self.sentiment(text, truncation=True)
        inputs = self.tokenizer([text], return_tensors="pt", truncation=True, return_token_type_ids=False)
        self.summary.generate(**inputs, num_beams=beams, min_length=50, max_length=50)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(2)
    torch_baseline = TorchBaseline(Path(sys.argv[1]))
    sys.stdout.write(json.dumps({"loaded": time.perf_counter() - BEGIN}) + "\n")
