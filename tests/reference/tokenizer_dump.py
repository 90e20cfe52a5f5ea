#!/usr/bin/env python3
"""Writes tests/reference/tokenizer/STYLE.json: a small tokenizer trained here by the `tokenizers` package, and what the package makes of text."""
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import nasty_text

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = [
    "The quick brown fox jumps over the lazy dog. What is 12 + 30? Give a short answer.", "def hello(name):\n    return f'Hello, {name}!'\n\n\nprint(hello('world'))",
    "I'm sure they've said it's fine; we'll see what you're doing, don't worry.", "na\u00efve fa\u00e7ade \u0416\u0438\u0432\u0430\u0433\u043e \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \U0001f600\U0001f600",
    "   indented\n\ttabs\n\r\nlines   with   runs     of spaces", "https://example.com/a?b=1&c=2 user@example.com 3.14159 1,000,000 2024-01-01", "HELLO World tokenization internationalization",
] * 8


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def smollm():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return t, [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")], []


def llama3():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return t, [special("<|begin_of_text|>"), special("<|eot_id|>"), special("<s>", lstrip=True, rstrip=True)], [AddedToken("[INST]", single_word=True)]


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return t, [special("<|endoftext|>", rstrip=True)], [AddedToken("the", single_word=True, normalized=True), AddedToken("\u0301", normalized=False), AddedToken("world!", lstrip=True)]


def qwen2():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return t, [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")], [AddedToken("e\u0301", normalized=True), AddedToken("\u212b", normalized=True)]


def splits():
    """Every behaviour of Split, strings and inverted patterns; the model sees raw characters and has no decoder."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.NFC()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("a", "merged_with_next"), pre_tokenizers.Split(Regex(r"\s+"), "merged_with_previous"), pre_tokenizers.Split(Regex(r"[\p{L}\d_]+"), "removed", invert=True),
        pre_tokenizers.Split(Regex(r"\w"), "contiguous"), pre_tokenizers.Split("l", "isolated"), pre_tokenizers.Digits(individual_digits=False),
    ])
    return t, [special("<unk>")], []


def finish(t):
    if t.pre_tokenizer is not None and t.model.unk_token is None:
        t.decoder = decoders.ByteLevel()
    names = {a.content: i for i, a in t.get_added_tokens_decoder().items()}
    if "<|begin_of_text|>" in names:
        wrap = processors.TemplateProcessing(single="<|begin_of_text|> $A <|eot_id|>", pair="$A $B", special_tokens=[(n, names[n]) for n in ("<|begin_of_text|>", "<|eot_id|>")])
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), wrap])
    elif "the" in names:
        t.post_processor = processors.ByteLevel(trim_offsets=True)


def dump(name, build, merges_as_pairs):
    t, specials, added = build()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if t.model.unk_token is None else []
    t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=specials, show_progress=False))
    t.add_tokens(added)
    finish(t)
    config = json.loads(t.to_str())
    if not merges_as_pairs:
        config["model"]["merges"] = [" ".join(m) for m in config["model"]["merges"]]
    t = Tokenizer.from_str(json.dumps(config))
    texts = nasty_text.texts(620, hash_of(name), [a.content for a in specials + added])
    rng = random.Random(hash_of(name))
    encode = []
    for text in texts:
        with_special, without = t.encode(text).ids, t.encode(text, add_special_tokens=False).ids
        encode.append([text, with_special] + ([without] if without != with_special else []))
    decode = []
    for i in range(400):
        ids = [rng.randrange(t.get_vocab_size() + 3) for _ in range(rng.randrange(10))] if i % 2 else encode[i][1]
        if len(ids) <= 60:
            kept, skipped = t.decode(ids, skip_special_tokens=False), t.decode(ids)
            decode.append([ids, kept] + ([skipped] if skipped != kept else []))
    out = {"tokenizer": config, "encode": encode, "decode": decode}
    target = pathlib.Path(__file__).parent / "tokenizer" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(name, t.get_vocab_size(), "tokens,", len(encode), "texts,", len(decode), "id lists,", target.stat().st_size, "bytes")


def hash_of(name):
    return sum(map(ord, name))


def main():
    for build in (smollm, llama3, gpt2, qwen2, splits):
        dump(build.__name__, build, merges_as_pairs=build in (llama3, splits))


if __name__ == "__main__":
    main()
