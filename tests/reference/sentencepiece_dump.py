#!/usr/bin/env python3
"""Writes tests/reference/sentencepiece/: small models trained by SentencePiece as Llama 2's was, and what Transformers' LlamaTokenizer,
told in several ways, makes of the texts of tokenizer/texts.json."""
import json
import os
import pathlib
import shutil
import tempfile

import sentencepiece
from transformers import AutoTokenizer

import nasty_text
import tokenizer_dump

CONFIGS = {
    "plain": {},
    "llama2": {"legacy": False, "add_bos_token": True, "add_eos_token": False, "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}},
    "legacy": {"legacy": True, "add_bos_token": True, "add_eos_token": True, "pad_token": "<pad>"},
    "bare": {"add_prefix_space": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "unk_token": "<unk>"},
    "extra": {"extra_special_tokens": ["<|im_end|>"]},
    "decoder": {"legacy": False, "add_bos_token": True, "added_tokens_decoder": {
        str(i): {"content": c, "lstrip": c == "[INST]", "normalized": False, "rstrip": c == "</s>", "single_word": False, "special": c != "[INST]"} for i, c in enumerate(["<unk>", "<s>", "</s>"])}},
}


def train(kind, folder):
    lines = [line for text in tokenizer_dump.TEXT + [" ".join(nasty_text.texts(300, 5))] * 2 for line in text.split("\n") if line.strip() and "\0" not in line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 2), model_prefix=kind, vocab_size=700, model_type=kind, byte_fallback=True, normalization_rule_name="identity", split_digits=True,
        user_defined_symbols=["[INST]", "world"], control_symbols=["<|tool|>"], add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.995,
        hard_vocab_limit=False, num_threads=1, max_sentence_length=20000, minloglevel=2)
    (folder / f"{kind}.vocab").unlink()


def main():
    folder = pathlib.Path(__file__).resolve().parent / "sentencepiece"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # the prefix is written into the model
    for kind in ("bpe", "unigram"):
        train(kind, folder)
    texts = json.loads((folder.parent / "tokenizer/texts.json").read_text())
    out = {}
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as d:
            shutil.copy(folder / "bpe.model", pathlib.Path(d, "tokenizer.model"))
            pathlib.Path(d, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"} | config))
            t = AutoTokenizer.from_pretrained(d)
        backend = json.loads(t.backend_tokenizer.to_str())
        digests = []
        for text in texts:
            ids, without = t(text).input_ids, t(text, add_special_tokens=False).input_ids
            digests.append(tokenizer_dump.digest(ids, without, t.decode(ids, skip_special_tokens=False), t.decode(ids, skip_special_tokens=True)))
        out[name] = {"config": config, "vocabulary": len(t), "parts": {k: backend[k] for k in ("normalizer", "pre_tokenizer", "decoder")}, "merges": len(backend["model"]["merges"]),
                     "hello": t("Hello world").input_ids, "digests": digests}
        print(name, len(t), t("Hello world [INST] x").tokens())
    target = folder / "cases.json"
    target.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
