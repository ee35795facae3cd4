"""Random sentence encoders in the layout of a model hub: the real architectures, a small vocabulary, few layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from tokenizers import BertWordPieceTokenizer, SentencePieceUnigramTokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizerFast,
)

from enrichment.export.assembly import quiet
from tests.parity.small import uneven

__all__ = ["KINDS", "MAX_TOKENS", "Kind", "write_encoder"]

Kind = Literal["bert", "xlm-roberta", "bert-unigram"]
"""BERT with WordPiece, XLM-R with Unigram, and what paraphrase-multilingual-MiniLM-L12-v2 is: BERT with Unigram."""

KINDS: Final[tuple[Kind, ...]] = ("bert", "xlm-roberta", "bert-unigram")
MAX_TOKENS: Final = 48  # of all of them, by sentence_bert_config.json


def write_encoder(folder: Path, kind: Kind, texts: Sequence[str], *, seed: int = 1, **changed: Any) -> Path:
    """Writes an encoder whose vocabulary is that of `texts`; `changed` are keys of its config.json."""
    with quiet():
        tokenizer = _wordpiece(texts) if kind == "bert" else _unigram(texts)
        sizes = {
            "vocab_size": tokenizer.vocab_size + 35,  # published encoders have spare rows, too
            "hidden_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 12,
            "intermediate_size": 512,
            "initializer_range": 0.08,  # so large that texts differ clearly
        }
        torch.manual_seed(seed)
        model: Any
        if kind == "xlm-roberta":
            ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
            model = XLMRobertaModel(XLMRobertaConfig(**{"max_position_embeddings": 66, **ids, **sizes, **changed}))
        else:
            model = BertModel(BertConfig(**{"max_position_embeddings": 64, **sizes, **changed}))
        uneven(model, seed).eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    _write(folder / "modules.json", modules)
    (folder / "README.md").write_text("---\nlanguage: multilingual\nlicense: apache-2.0\n---\n\n# Random\n")
    return folder


def _wordpiece(texts: Sequence[str]) -> Any:
    """BERT's tokenizer: [PAD] is 0, and the other special tokens follow."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, vocab_size=900, special_tokens=special, show_progress=False)
    pieces: Tokenizer = tokenizer._tokenizer
    pieces.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return BertTokenizerFast(tokenizer_object=pieces, model_max_length=64)


def _unigram(texts: Sequence[str]) -> Any:
    """XLM-R's tokenizer: <s> is 0, <pad> 1, </s> 2, and each word begins with its space."""
    tokenizer = SentencePieceUnigramTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts, vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False)
    pieces: Tokenizer = tokenizer._tokenizer
    pieces.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return XLMRobertaTokenizerFast(tokenizer_object=pieces, model_max_length=64)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
