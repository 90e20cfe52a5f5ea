#!/usr/bin/env python3
"""Compares `troupe tokenize` with the `tokenizers` package on random text and random ids; exit 1 where they differ.

  fuzz_tokenizer.py [--troupe build/cpu/troupe] [--model DIR | --style NAME...] [--count 20000] [--seed 0]

Without --model: the tokenizers of tests/reference/tokenizer, all of them or those named, and models/smollm2-135m where it is.
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


def compare_all(troupe, model, count, seed):
    theirs = tokenizers.Tokenizer.from_file(str(pathlib.Path(model, "tokenizer.json")))
    special = [t.content for t in theirs.get_added_tokens_decoder().values()][:20]
    texts = nasty_text.texts(count, seed, special)
    good = True
    for add in (True, False):
        ours = [r["ids"] for r in run(troupe, model, [{"text": t, "add_special_tokens": add} for t in texts])]
        good &= compare(f"encode, add_special_tokens={add}", texts, ours, [theirs.encode(t, add_special_tokens=add).ids for t in texts])
    rng = random.Random(seed)
    limit = theirs.get_vocab_size() + 10
    ids = [[rng.randrange(limit) for _ in range(rng.randrange(12))] for _ in range(count)]
    ids += [theirs.encode(t, add_special_tokens=True).ids for t in texts]
    ours = [r["text"] for r in run(troupe, model, [{"ids": i} for i in ids], "--decode")]
    return compare("decode", ids, ours, [theirs.decode(i, skip_special_tokens=False) for i in ids]) and good


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--troupe", default="build/cpu/troupe")
    args.add_argument("--model")
    args.add_argument("--style", nargs="*")
    args.add_argument("--count", type=int, default=20000)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()
    if args.model:
        return 0 if compare_all(args.troupe, args.model, args.count, args.seed) else 1
    folder = pathlib.Path(__file__).parent / "tokenizer"
    styles = args.style or sorted(f.stem for f in folder.glob("*.json") if f.stem not in ("texts", "classes"))
    good = True
    for style in styles:
        print(f"-- {style}", flush=True)
        with tempfile.TemporaryDirectory() as model:
            pathlib.Path(model, "tokenizer.json").write_text(json.dumps(json.loads((folder / f"{style}.json").read_text())["tokenizer"]))
            good &= compare_all(args.troupe, model, args.count, args.seed)
    real = pathlib.Path("models/smollm2-135m")
    if not args.style and (real / "tokenizer.json").exists():
        print(f"-- {real}", flush=True)
        good &= compare_all(args.troupe, real, args.count, args.seed)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
