#!/usr/bin/env python3
"""Writes tests/reference/tokenizer/STYLE.json: a small tokenizer trained here by the `tokenizers` package with the parts of a family
of models, and what the package makes of text; texts.json: what all styles are asked, of which each keeps digests."""
import json
import pathlib
import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import nasty_text

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXT = [
    "The quick brown fox jumps over the lazy dog. What is 12 + 30? Give a short answer.", "def hello(name):\n    return f'Hello, {name}!'\n\n\nprint(hello('world'))",
    "I'm sure they've said it's fine; we'll see what you're doing, don't worry.", "na\u00efve fa\u00e7ade \u0416\u0438\u0432\u0430\u0433\u043e \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \U0001f600\U0001f600",
    "   indented\n\ttabs\n\r\nlines   with   runs     of spaces", "https://example.com/a?b=1&c=2 user@example.com 3.14159 1,000,000 2024-01-01", "HELLO World tokenization internationalization",
] * 8


def special(text, **flags):
    return AddedToken(text, special=True, normalized=flags.pop("normalized", False), **flags)


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def wrapped(t, single):
    names = re.findall(r"[^ $]\S+", single.replace("$A", ""))
    ids = {a.content: i for i, a in t.get_added_tokens_decoder().items()}
    return processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=[(n, ids[n]) for n in dict.fromkeys(names)])


# Each makes a tokenizer whose model is trained afterwards, its special and its other added tokens, and what is set after training.

def smollm():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    return t, [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")], [], None


def llama3():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer, t.decoder = split_then_bytes(LLAMA3), decoders.ByteLevel()
    post = lambda t: processors.Sequence([processors.ByteLevel(trim_offsets=False), wrapped(t, "<|begin_of_text|> $A <|eot_id|>")])
    return t, [special("<|begin_of_text|>"), special("<|eot_id|>"), special("<s>", lstrip=True, rstrip=True)], [AddedToken("[INST]", single_word=True)], post


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    added = [AddedToken("the", single_word=True, normalized=True), AddedToken("\u0301", normalized=False), AddedToken("world!", lstrip=True)]
    return t, [special("<|endoftext|>", rstrip=True)], added, lambda t: processors.ByteLevel(trim_offsets=True)


def qwen2():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer, t.decoder = split_then_bytes(QWEN2), decoders.ByteLevel()
    return t, [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")], [AddedToken("e\u0301", normalized=True), AddedToken("\u212b", normalized=True)], None


BYTES = [f"<0x{b:02X}>" for b in range(256)]
SENTENCEPIECE = ["<unk>", "<s>", "</s>"]


def sentencepiece_decoder():
    return decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def llama2():
    """As converted from SentencePiece with legacy = true: spaces are made by the normalizer, of added tokens too."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = sentencepiece_decoder()
    return t, [special("<unk>", normalized=True), special("<s>"), special("</s>", normalized=True)] + BYTES, [AddedToken("<pad>", normalized=False)], lambda t: wrapped(t, "<s> $A")


def mistral3():
    """As Mistral 7B v0.3 and Llama 2 with legacy = false: spaces are made by Metaspace."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = sentencepiece_decoder()
    return t, [special(s) for s in SENTENCEPIECE + ["[INST]", "[/INST]", "[TOOL_CALLS]"]] + BYTES, [], lambda t: wrapped(t, "<s> $A")


def tekken():
    """As Mistral Nemo: a Split of letters by their case."""
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer, t.decoder = split_then_bytes(TEKKEN), decoders.ByteLevel()
    return t, [special(s) for s in SENTENCEPIECE + ["[INST]", "[/INST]"]], [], lambda t: wrapped(t, "<s> $A")


def gemma():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return t, [special(s) for s in ["<pad>", "<eos>", "<bos>", "<unk>"]] + BYTES, [AddedToken("\n\n", normalized=False), AddedToken("\u2581\u2581", normalized=False), special("<start_of_turn>")], lambda t: wrapped(t, "<bos> $A")


def phi3():
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = sentencepiece_decoder()
    return t, [special(s) for s in SENTENCEPIECE] + BYTES, [special("<|endoftext|>"), special("<|user|>", rstrip=True), special("<|end|>", rstrip=True), AddedToken("[INST]", rstrip=True, normalized=False)], None


def clip():
    """An end of words, a pattern that marks words, and normalizers in turn; the second part of the template is twice there."""
    t = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    return t, [special("<|startoftext|>"), special("<|endoftext|>")], [AddedToken("Hello", normalized=True)], lambda t: wrapped(t, "<|startoftext|> $A <|endoftext|> <|endoftext|>")


def words():
    """The parts that the others lack: NFKD, StripAccents, Strip, Whitespace, Punctuation, a prefix of what stands inside words."""
    t = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    t.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Strip(left=True, right=True), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous")])
    t.decoder = decoders.Sequence([decoders.Replace(Regex("^##"), ""), decoders.Strip("a", 0, 1), decoders.Fuse()])
    return t, [special("<unk>")], [AddedToken("World", single_word=True)], None


def spaces():
    """Metaspace that splits and always prepends, behind WhitespaceSplit and Punctuation; NFKC and a Strip of one side."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous"), pre_tokenizers.Metaspace("\u2581", "always", True)])
    t.decoder = decoders.Metaspace("\u2581", "always", True)
    return t, [special("<unk>")], [AddedToken("lazy", lstrip=True, rstrip=True)], None


def splits():
    """Every behaviour of Split, strings and inverted patterns; the model sees raw characters and has no decoder."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.NFC()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("a", "merged_with_next"), pre_tokenizers.Split(Regex(r"\s+"), "merged_with_previous"), pre_tokenizers.Split(Regex(r"[\p{L}\d_]+"), "removed", invert=True),
        pre_tokenizers.Split(Regex(r"\w"), "contiguous"), pre_tokenizers.Split("l", "isolated"), pre_tokenizers.Digits(individual_digits=False),
    ])
    return t, [special("<unk>")], [], None


STYLES = (smollm, llama3, gpt2, qwen2, llama2, mistral3, tekken, gemma, phi3, clip, words, spaces, splits)
PAIRED_MERGES = (llama3, splits, tekken, mistral3)  # the others' merges are written as "a b"


def train(build):
    t, specials, added, post = build()
    by_bytes = "ByteLevel" in json.loads(t.to_str())["pre_tokenizer"].__repr__()
    text = TEXT + [" ".join(nasty_text.texts(300, 5))] * 2
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if by_bytes else [], limit_alphabet=500, special_tokens=specials, show_progress=False,
                                  **{k: v for k, v in (("continuing_subword_prefix", t.model.continuing_subword_prefix), ("end_of_word_suffix", t.model.end_of_word_suffix)) if v})
    t.train_from_iterator(text, trainer)
    t.add_tokens(added)
    if post:
        t.post_processor = post(t)
    config = json.loads(t.to_str())
    config["added_tokens"] = [a for a in config["added_tokens"] if a["content"] not in BYTES]
    if build not in PAIRED_MERGES:
        config["model"]["merges"] = [" ".join(m) for m in config["model"]["merges"]]
    return config


def digest(*parts):
    """FNV-1a, 48 bits of it, over numbers and text as UTF-8 with a separator behind each."""
    out = 0xCBF29CE484222325
    for part in parts:
        data = part.encode() if isinstance(part, str) else b"".join(b"%d " % i for i in part)
        for byte in data + b"\xff":
            out = ((out ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{out >> 16:012x}"


def random_ids(count, limit):
    """Lists of ids by a generator that the test has too."""
    state = 1
    def draw(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (state >> 33) % n
    return [[draw(limit) for _ in range(draw(12))] for _ in range(count)]


def dump(name, config, texts):
    t = Tokenizer.from_str(json.dumps(config))
    own = [a["content"] for a in config["added_tokens"]]
    encode = []
    for text in nasty_text.texts(300, hash_of(name), own)[-120:] + [a + b + c for a in ("x", " ", "") for b in own[:8] for c in ("", " y", "y")]:
        with_special, without = t.encode(text).ids, t.encode(text, add_special_tokens=False).ids
        encode.append([text, with_special] + ([without] if without != with_special else []))
    rng = random.Random(hash_of(name))
    decode = []
    for i in range(120):
        ids = [rng.randrange(t.get_vocab_size() + 3) for _ in range(rng.randrange(10))] if i % 2 else encode[i][1]
        kept, skipped = t.decode(ids, skip_special_tokens=False), t.decode(ids)
        decode.append([ids, kept] + ([skipped] if skipped != kept else []))
    encoded = [(t.encode(x).ids, t.encode(x, add_special_tokens=False).ids) for x in texts]
    digests = [digest(a, b, t.decode(a, skip_special_tokens=False), t.decode(a)) for a, b in encoded]
    decoded = [digest(t.decode(i, skip_special_tokens=False), t.decode(i)) for i in random_ids(1000, t.get_vocab_size() + 3)]
    out = {"tokenizer": config, "vocabulary": t.get_vocab_size(), "encode": encode, "decode": decode, "digests": digests, "decoded": decoded}
    target = pathlib.Path(__file__).parent / "tokenizer" / f"{name}.json"
    target.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(name, t.get_vocab_size(), "tokens,", len(encode), "texts,", len(decode), "id lists,", target.stat().st_size, "bytes")


def hash_of(name):
    return sum(map(ord, name))


def main():
    configs = {build.__name__: train(build) for build in STYLES}
    added = [a["content"] for c in configs.values() for a in c["added_tokens"]]
    texts = nasty_text.texts(2200, 7, list(dict.fromkeys(added)))
    target = pathlib.Path(__file__).parent / "tokenizer" / "texts.json"
    target.write_text(json.dumps(texts, ensure_ascii=True, separators=(",", ":")) + "\n")
    for name, config in configs.items():
        dump(name, config, texts)


if __name__ == "__main__":
    main()
