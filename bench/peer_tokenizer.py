#!/usr/bin/env python3
"""What bench/tokenizer.cpp measures, with the `tokenizers` package on one thread: peer_tokenizer.py [DIR [FILE...]]

mb_per_s: the faster of encode(text) one by one and of encode_batch_fast over all texts; five passes, the fastest.
"""
import json
import os
import pathlib
import sys
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer  # noqa: E402  (after the threads are set)


def fastest(times, work):
    best = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        best.append(time.perf_counter() - begin)
    return best[0], min(best)


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m"
    files = [pathlib.Path(f) for f in sys.argv[2:]] or [pathlib.Path("README.md")] + sorted([*pathlib.Path("docs").rglob("*.md"), *pathlib.Path("model").rglob("*.cpp")])
    texts = [p for f in files for p in f.read_bytes().decode().split("\n\n") if p]
    t = Tokenizer.from_file(str(pathlib.Path(model, "tokenizer.json")))
    first, each = fastest(5, lambda: [t.encode(x) for x in texts])
    _, batch = fastest(5, lambda: t.encode_batch_fast(texts))
    ids = [t.encode(x).ids for x in texts]
    _, back = fastest(5, lambda: [t.decode(i, skip_special_tokens=False) for i in ids])
    mb = sum(len(x.encode()) for x in texts) * 1e-6
    print(json.dumps({"texts": len(texts), "bytes": round(mb * 1e6), "tokens": sum(map(len, ids)), "sum": sum(map(sum, ids)), "first_mb_per_s": round(mb / first, 2),
                      "mb_per_s": round(mb / min(each, batch), 2), "decode_mb_per_s": round(mb / back, 2)}))


if __name__ == "__main__":
    main()
