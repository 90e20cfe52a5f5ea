"""Text that tokenizers get wrong: a fixed list, and random strings made from its pieces and from all of Unicode."""
import random

PIECES = [
    "", " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u180e",
    "\u2003", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\u200b", "\u200c", "\u200d", "\u2060", "\x00", "\x01", "\x7f",
    "\xad", "\u0300", "\u0301", "\u0323", "\u0345", "e\u0301", "\u00e9", "o\u0323\u0308", "\u1e69", "\u212b", "\u00c5", "A\u030a",
    "\uac00", "\u1100\u1161", "\u1100\u1161\u11a8", "\ufb01", "\u017f", "\u212a", "\u0130", "\u00df", "\u1e9e", "\u03a3\u03c3\u03c2",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3",
    "\u4f60\u597d", "\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\u30ab\u3099", "\ud55c\uad6d\uc5b4", "\u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u202e", "\u200f", "\u061c",
    "0", "1", "42", "2024", "3.14", "1,000,000", "12345678901234567890", "\u0661\u0662\u0663", "\u0967\u0968", "\u216b", "\u00bd", "\u00b2", "\u2460",
    "\u4e09", "\U0001d7d8\U0001d7d9", "\U00011f50\U00011f51", "\U00010d40", "\U00011de0", "\U0001e4f0", "\U0001ccf0",
    "a", "b", "x", "I", "the", "The", "THE", "hello", "Hello", "world", "token", "izer", "don't", "DON'T", "it's", "IT'S", "we'll", "they've", "I'm",
    "you're", "he'd", "'s", "'S", "'\u017f", "'ll", "'LL", "'re", "'ve", "'d", "'m", "'t", "''", "\u2019s", "camelCase", "snake_case", "ALLCAPS",
    "foo(bar)", "{}", "[]", "();", "==", "!=", "->", "//", "/*", "#include", "<", ">", "</", "&amp;", "...", "!!!", "?!", "--", "___", "@", "$", "%", "^",
    "\\n", "\\", "\"", "`", "~", "http://example.com/a?b=c&d=e#f", "user@example.com", "C:\\x\\y", "+1 (555) 123-4567", "na\u00efve", "fa\u00e7ade",
    "\u0416\u0438\u0432\u0430\u0433\u043e", "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1", "\u01c5", "\u02b0", "\u00aa", "\u00ba", "\U00010400", "\U0001d400",
    "\u2591", "\u2211", "\u20ac", "\u00a3", "\u221e", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000e0001", "\U0001171e", "\u1df6", "\u0898",
    "\U00011935\U00011930", "\U00011938", "\u0344", "\u0f73", "\u2126", "\ufa0e", "\U0002f800", "\u2581", "\u2581\u2581", "\u0120", "\u010a", "\u0100",
    "\u00c3\u00a9", "\u0100\u0143", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start", "|im_end|>", "<0x0A>", "[INST]",
    "<|begin_of_text|>", "<|eot_id|>", "<|", "|>", "user\n", "assistant\n",
]

FIXED = PIECES + [
    " " + p for p in PIECES if p
] + [
    "a" * 300, "ab" * 200, " " * 257 + "x", "\n" * 100, "\t \t \t", "x" * 40 + " " * 40 + "y", "1" * 101, "\u0301" * 50, "e" + "\u0301\u0323" * 20, "\U0001f600" * 33,
    "Hello world! How are you?  I'm fine,\tthanks.\r\n\r\nBye.", "def f(x):\n    return x ** 2\n", "  leading and trailing  ", "a\u00a0b\u2003c\u2028d",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|>", " <|im_end|> ", "x<|im_end|>y", "\n<|im_end|>\n", "<|im_end|><|im_end|>",
    "  <s>  </s>  ", "a<s>b", "a <s> b", "<s", "<<s>>", "<|endoftext|> \u0301", "\u0301<|endoftext|>", "\ufeffBOM", "\x00\x00\x00", "a\x00b",
    "".join(chr(c) for c in range(0x20)), "".join(chr(c) for c in range(0x80, 0x100)), "".join(chr(c) for c in range(0x2000, 0x2070)),
]


def any_character(rng):
    """Mostly the low planes; never a surrogate."""
    while True:
        c = rng.choice([rng.randrange(0x80), rng.randrange(0x300), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x20000), rng.randrange(0x110000)])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def random_text(rng, extra=()):
    pieces = PIECES + list(extra) * 3
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 20])):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(pieces))
        elif kind < 0.8:
            parts.append("".join(any_character(rng) for _ in range(rng.randrange(1, 6))))
        elif kind < 0.9:
            parts.append(rng.choice([" ", "\n", "\t", "\u00a0"]) * rng.randrange(1, 12))
        else:
            parts.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(rng.randrange(1, 30))))
    return "".join(parts)


def texts(count, seed, extra=()):
    """The fixed list and then random ones, `count` in all."""
    rng = random.Random(seed)
    out = list(dict.fromkeys(FIXED))[:count]
    while len(out) < count:
        out.append(random_text(rng, extra))
    return out
