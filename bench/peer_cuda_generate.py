"""Transformers' generate on one GPU with random bfloat16 weights of the shapes that bench/cuda_generate.cpp has.

tokens_per_second = batch * NEW / (seconds of PROMPT + NEW tokens - seconds of PROMPT + 1), so prefill is left out. static: a compiled forward
pass over a static cache, which is its fastest way for one sequence; dynamic: its default. One line a case, and the rate of a device copy."""
import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
               tie_word_embeddings=True),
}


def copy_rate():
    a = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    b.copy_(a)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        b.copy_(a)
    torch.cuda.synchronize()
    return 10 * 2 * a.numel() / (time.perf_counter() - start)


def seconds(model, ids, new, cache):
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0,
                       cache_implementation=cache)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--cases", nargs="+", default=["1x64:static", "1x64:dynamic", "64x1024:dynamic"], help="BATCHxCONTEXT:CACHE")
    parser.add_argument("--new", type=int, default=32)
    args = parser.parse_args()
    print(f"copy {copy_rate() * 1e-9:.0f} GB/s", flush=True)
    config = LlamaConfig(vocab_size=128256, max_position_embeddings=32768, rope_theta=500000.0, **SHAPES[args.shape])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    for case in args.cases:
        size, cache = case.split(":")
        batch, context = map(int, size.split("x"))
        ids = torch.randint(100, 100000, (batch, context), device="cuda")
        name = None if cache == "dynamic" else cache
        seconds(model, ids, args.new, name)
        prefill = min(seconds(model, ids, 1, name) for _ in range(2))
        whole = min(seconds(model, ids, args.new, name) for _ in range(2))
        print(f"transformers {args.shape} batch {batch} context {context} {cache}: {batch * (args.new - 1) / (whole - prefill):.0f} tokens/s, "
              f"prefill {prefill:.2f} s", flush=True)


if __name__ == "__main__":
    main()
