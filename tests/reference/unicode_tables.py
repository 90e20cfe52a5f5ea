#!/usr/bin/env python3
"""Writes model/tokenizer/unicode_tables.inc: where the `tokenizers` package's Unicode differs from PCRE2 10.42's (14.0).

The package asks Oniguruma (Unicode 16) in regexes, Rust's standard library (17) in Digits, and tables of Unicode 9 in NFC.
Python 3.11's unicodedata is 14.0 as PCRE2 10.42 is; combining classes are taken from the libutf8proc that troupe links.
"""
import ctypes
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
    for name in CATEGORIES:
        package = regex_class(r"\p{%s}" % name)
        ours = {c for c in POINTS if unicodedata.category(chr(c)).startswith(name)}
        if name == "N":
            numbers = ours
        if package - ours:
            out += table(name, package - ours)
        for r in ranges(ours - package):
            print(f"not expressed: {name} loses U+{r[0]:04X}..{r[1]:04X}")
    out += table("numeric", numeric() - numbers)
    out += table("unordered", unknown_marks())
    (pathlib.Path(__file__).parents[2] / "model/tokenizer/unicode_tables.inc").write_text(out)


if __name__ == "__main__":
    main()
