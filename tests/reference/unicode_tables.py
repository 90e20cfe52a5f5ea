#!/usr/bin/env python3
"""Writes model/tokenizer/{unicode,lowercase}_tables.inc: where the `tokenizers` package's Unicode differs from PCRE2 10.42's (14.0)
and utf8proc 2.8's (15.0); and tests/reference/tokenizer/classes.json: the package's classes in full, for the test that compares all.

The package asks Oniguruma (Unicode 16) in regexes, Rust's standard library (17) in Digits and Lowercase, tables of Unicode 9 in
the normal forms, and tables of its own in Punctuation and StripAccents.
Python 3.11's unicodedata is 14.0 as PCRE2 10.42 is; combining classes are taken from the libutf8proc that troupe links.
"""
import ctypes
import json
import pathlib
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = ("L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp".split())
assert unicodedata.unidata_version == "14.0.0"


def matched(splitter):
    """Characters that a splitter, which removes everything else, leaves."""
    found = set()
    for at in range(0, len(POINTS), 4096):
        for piece, _ in splitter.pre_tokenize_str("".join(map(chr, POINTS[at : at + 4096]))):
            found.update(map(ord, piece))
    return found


def regex_class(pattern):
    return matched(pre_tokenizers.Split(Regex(pattern), "removed", invert=True))


def numeric():
    found = set()
    digits = pre_tokenizers.Digits(True)
    for c in POINTS:
        if c != ord("a") and len(digits.pre_tokenize_str("a" + chr(c))) == 2:
            found.add(c)
    return found


class Property(ctypes.Structure):
    _fields_ = [("category", ctypes.c_int16), ("combining_class", ctypes.c_int16)]


def unknown_marks():
    """Characters with a combining class or a composition in utf8proc that the package's NFC leaves as they are."""
    lib = ctypes.CDLL("libutf8proc.so.2")
    lib.utf8proc_get_property.restype = ctypes.POINTER(Property)
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    found = set()
    for c in POINTS:
        rank = lib.utf8proc_get_property(ctypes.c_int32(c)).contents.combining_class
        if rank:
            # A mark that is known moves before one of a higher class or behind one of a lower.
            before, after = ("\u0345", "") if rank < 240 else ("", "\u0334")
            text = "q" + before + chr(c) + after
            if nfc.normalize_str(text) == text:
                found.add(c)
        parts = unicodedata.normalize("NFD", chr(c))
        if parts != chr(c) and nfd.normalize_str(chr(c)) == chr(c):
            found.update([c, *map(ord, parts[1:])])
    return found


def outside_words(splitter, parts):
    """Characters at which a splitter cuts `a?a` in so many parts."""
    return {c for c in POINTS if len(splitter.pre_tokenize_str("a" + chr(c) + "a")) == parts}


def dropped_marks():
    strip = normalizers.StripAccents()
    return {c for c in POINTS if strip.normalize_str("a" + chr(c)) == "a"}


def indivisible():
    """Characters that only utf8proc's newer Unicode decomposes for compatibility."""
    lib = ctypes.CDLL("libutf8proc.so.2")
    lib.utf8proc_NFKD.restype = ctypes.c_char_p
    nfkd = normalizers.NFKD()
    return {c for c in POINTS[1:] if nfkd.normalize_str(chr(c)) == chr(c) and normalizers.NFD().normalize_str(chr(c)) == chr(c)
            and lib.utf8proc_NFKD(chr(c).encode()).decode() != chr(c)}


def newer_letters():
    lib = ctypes.CDLL("libutf8proc.so.2")
    lower = normalizers.Lowercase()
    theirs = {c: lower.normalize_str(chr(c)) for c in POINTS}
    return {c: ord(t) for c, t in theirs.items() if len(t) == 1 and ord(t) != lib.utf8proc_tolower(ctypes.c_int32(c))}


def digests():
    """FNV-1a of what the package makes of each character alone, 4,096 at a time, by normalizer."""
    out = {}
    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        normalizer, out[name] = getattr(normalizers, name)(), []
        for first in range(0, 0x110000, 4096):
            digest = 0xCBF29CE484222325
            for c in range(first, first + 4096):
                if not 0xD800 <= c < 0xE000:
                    for byte in normalizer.normalize_str(chr(c)).encode() + b"\n":
                        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
            out[name].append(f"{digest:016x}")
    return out


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def table(name, points):
    rows = ", ".join("{0x%X, 0x%X}" % tuple(r) for r in ranges(points))
    return f'{{"{name}", {{{rows}}}}},\n'


def main():
    out = "// Made by tests/reference/unicode_tables.py; ranges of characters, both ends included.\n"
    numbers = None
    classes = {}
    for name in CATEGORIES:
        package = classes[r"\p{%s}" % name] = regex_class(r"\p{%s}" % name)
        ours = {c for c in POINTS if unicodedata.category(chr(c)).startswith(name)}
        if name == "N":
            numbers = ours
        if ours - package:
            out += table("=" + name, package)  # nothing can be taken from a class: written out
        elif package - ours:
            out += table(name, package - ours)
    for pattern in (r"\s", r"\d", r"\w", r"\S", r"\D", r"\W", r"[^\s\p{L}\p{N}]", r"[^\r\n\p{L}\p{N}]", "(?i:s)", "(?i:k)", "."):
        classes[pattern] = regex_class(pattern)
    known = classes[r"\p{L}"] | classes[r"\p{M}"] | classes[r"\p{Nd}"] | classes[r"\p{Nl}"] | classes[r"\p{Pc}"]
    out += table("word", classes[r"\w"] - known)
    assert not known - classes[r"\w"]
    numeric_points = numeric()
    punctuation, marks = outside_words(pre_tokenizers.Punctuation(), 3), dropped_marks()
    out += table("numeric", numeric_points - numbers)
    out += table("unordered", unknown_marks())
    out += table("indivisible", indivisible())
    out += table("punctuation", punctuation)
    out += table("mark", marks)
    parts = {"Digits": numeric_points, "Punctuation": punctuation, "Whitespace": outside_words(pre_tokenizers.Whitespace(), 1),
             "WhitespaceSplit": outside_words(pre_tokenizers.WhitespaceSplit(), 2)}
    root = pathlib.Path(__file__).parents[2]
    (root / "model/tokenizer/unicode_tables.inc").write_text(out)
    letters = "// Made by tests/reference/unicode_tables.py; letters whose lower case utf8proc does not know.\n"
    letters += "".join("{0x%X, 0x%X},\n" % pair for pair in sorted(newer_letters().items()))
    (root / "model/tokenizer/lowercase_tables.inc").write_text(letters)
    whole = {"regex": {k: ranges(v) for k, v in classes.items()}, "parts": {k: ranges(v) for k, v in parts.items()}, "digests": digests()}
    (root / "tests/reference/tokenizer/classes.json").write_text(json.dumps(whole, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
