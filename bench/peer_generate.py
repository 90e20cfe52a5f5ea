"""Transformers' generate on the CPU: output tokens a second, greedy, 40 prompt tokens and 64 new ones.

tokens_per_second = batch * 64 / seconds of the fastest of three calls. One JSON object a line; the limit is this machine's
rate of the model's matrix products alone (the same shapes, one call each, per decode step)."""
import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW = 40, 64


def fastest(call, times):
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matmul_limit(model, batch):
    """Seconds that one decode step's matrix products take by themselves, in torch."""
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = [torch.randn(batch, w.shape[1], dtype=w.dtype) for w in weights]

    def step():
        for x, w in zip(inputs, weights):
            torch.nn.functional.linear(x, w)

    step()
    return fastest(step, 5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 128])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for dtype in args.dtype:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, dtype)).eval()
        for batch in args.batch:
            ids = torch.randint(100, 40000, (batch, PROMPT))

            def generate():
                with torch.inference_mode():
                    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW,
                                         pad_token_id=0)
                assert out.shape == (batch, PROMPT + NEW)

            generate()
            rate = batch * NEW / fastest(generate, 3)
            with torch.inference_mode():
                limit = batch / matmul_limit(model, batch)
            print(json.dumps({"peer": "transformers.generate", "dtype": dtype, "batch": batch, "threads": args.threads,
                              "tokens_per_second": round(rate, 1), "matmuls_alone": round(limit, 1), "share": round(rate / limit, 3)}), flush=True)


if __name__ == "__main__":
    main()
