"""CTranslate2 with the random DistilBART in int8, for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def translator(model: Path, folder: Path) -> Any:
    """A CTranslate2 translator of a model, converted once into `folder`; token n is named "tn"."""
    import ctranslate2

    if not (folder / "model.bin").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _convert(model, folder)
    return ctranslate2.Translator(str(folder), compute_type="int8", intra_threads=2, inter_threads=1)


def _convert(model: Path, folder: Path) -> None:
    from ctranslate2.converters.transformers import BartLoader
    from transformers import BartForConditionalGeneration

    class Tokenizer:
        bos_token, eos_token, unk_token, pad_token = "<s>", "</s>", "t3", "<pad>"

        @staticmethod
        def convert_ids_to_tokens(number: int) -> str:
            return ("<s>", "<pad>", "</s>")[number]

    bart = BartForConditionalGeneration.from_pretrained(str(model))
    # As in the published configuration; the converter needs them.
    bart.config.normalize_before, bart.config.normalize_embedding, bart.config.add_bias_logits = False, True, False
    loader = BartLoader()
    spec = loader.get_model_spec(bart)
    words = ["<s>", "<pad>", "</s>", *(f"t{i}" for i in range(3, bart.config.vocab_size))]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    loader.set_config(spec.config, bart, Tokenizer)
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))
