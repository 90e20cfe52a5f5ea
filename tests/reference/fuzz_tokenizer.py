#!/usr/bin/env python3
"""Compares `troupe tokenize` with the `tokenizers` package on random text and random ids; exit 1 at the first difference.

  fuzz_tokenizer.py [--troupe build/cpu/troupe] [--model models/smollm2-135m] [--count 20000] [--seed 0]
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import tokenizers

import nasty_text


def run(troupe, model, rows, *flags):
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "in.jsonl"), pathlib.Path(folder, "out.jsonl")
        source.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        subprocess.run([troupe, "tokenize", "--model", model, "--input", source, "--output", target, *flags], check=True)
        return [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n")[:-1]]


def compare(kind, asked, ours, theirs):
    wrong = [i for i in range(len(asked)) if ours[i] != theirs[i]]
    print(f"{kind}: {len(asked)} compared, {len(wrong)} different")
    for i in wrong[:5]:
        print(f"  {ascii(asked[i])}\n    troupe  {ascii(ours[i])}\n    package {ascii(theirs[i])}")
    return not wrong


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--troupe", default="build/cpu/troupe")
    args.add_argument("--model", default="models/smollm2-135m")
    args.add_argument("--count", type=int, default=20000)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()
    theirs = tokenizers.Tokenizer.from_file(str(pathlib.Path(args.model, "tokenizer.json")))
    special = [t.content for t in theirs.get_added_tokens_decoder().values()][:20]
    texts = nasty_text.texts(args.count, args.seed, special)
    good = True
    for add in (True, False):
        ours = [r["ids"] for r in run(args.troupe, args.model, [{"text": t, "add_special_tokens": add} for t in texts])]
        good &= compare(f"encode, add_special_tokens={add}", texts, ours, [theirs.encode(t, add_special_tokens=add).ids for t in texts])
    rng = random.Random(args.seed)
    limit = theirs.get_vocab_size() + 10
    ids = [[rng.randrange(limit) for _ in range(rng.randrange(12))] for _ in range(args.count)]
    ids += [theirs.encode(t, add_special_tokens=True).ids for t in texts]
    ours = [r["text"] for r in run(args.troupe, args.model, [{"ids": i} for i in ids], "--decode")]
    good &= compare("decode", ids, ours, [theirs.decode(i, skip_special_tokens=False) for i in ids])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
