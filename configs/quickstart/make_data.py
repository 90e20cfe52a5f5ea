#!/usr/bin/env python3
"""Writes train.jsonl and val.jsonl beside this script: sums of two numbers, always the same bytes.

Of the 210 unordered pairs in 1..20 the 105 with the smallest hash are held out, so that training never shows b + a
where validation asks a + b.
"""
import json
import pathlib

MASK = (1 << 64) - 1


def splitmix64(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def main():
    pairs = [(a, b) for a in range(1, 21) for b in range(a, 21)]
    held_out = set(sorted(pairs, key=lambda p: splitmix64(p[0] * 1000 + p[1]))[:105])
    here = pathlib.Path(__file__).parent
    with open(here / "train.jsonl", "w", newline="\n") as train, open(here / "val.jsonl", "w", newline="\n") as val:
        for a in range(1, 21):
            for b in range(1, 21):
                prompt = f"What is {a} + {b}? Give a short answer."
                row = {"prompt": [{"role": "user", "content": prompt}], "answer": str(a + b)}
                (val if (min(a, b), max(a, b)) in held_out else train).write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
