"""FlashAttention 2 (torch's own) beside bench/cuda_attention.cpp: the same shapes, the same formulas."""
import statistics

import torch

flash = torch.ops.aten._flash_attention_forward
flash_backward = torch.ops.aten._flash_attention_backward


def graph_seconds(calls, repeats=15):
    """Median seconds of a call; all captured in one graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        calls[0]()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for i in range(repeats + 3):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(), graph.replay(), b.record(), b.synchronize()
        times.append(a.elapsed_time(b) / 1e3 / len(calls))
    return statistics.median(times[3:])


def copy_rate():
    a = torch.randn(1 << 29, device="cuda")
    b = torch.empty_like(a)
    times = []
    for _ in range(20):
        x, y = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        x.record(), b.copy_(a), y.record(), y.synchronize()
        times.append(x.elapsed_time(y) / 1e3)
    return 2 * a.numel() * 4 / statistics.median(times[5:])


def noise(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def decode(n_heads, n_kv_heads, head_dim, batch, context, copy):
    n_bytes = batch * context * n_kv_heads * head_dim * 4
    sets = min(64, max(2, int(4e8 / n_bytes)))
    k, v = noise(sets, batch, context, n_kv_heads, head_dim), noise(sets, batch, context, n_kv_heads, head_dim)
    q = noise(batch, 1, n_heads, head_dim)
    t = graph_seconds([lambda i=i: flash(q, k[i], v[i], None, None, 1, context, 0.0, False, False) for i in range(sets)])
    print(f"decode   {n_heads:2}/{n_kv_heads} d {head_dim:3}  {batch:3} x {context:5}  {t * 1e6:7.1f} us  {n_bytes / t / 1e9:5.0f} GB/s  {n_bytes / t / copy:.2f} of copy", flush=True)


def prefill(n_heads, n_kv_heads, head_dim, batch, length):
    q, k, v = (noise(batch, length, h, head_dim) for h in (n_heads, n_kv_heads, n_kv_heads))
    flops = 2 * batch * length * length * n_heads * head_dim
    t = graph_seconds([lambda: flash(q, k, v, None, None, length, length, 0.0, True, False)] * 8)
    print(f"prefill  {n_heads:2}/{n_kv_heads} d {head_dim:3}  {batch:3} x {length:5}  {t * 1e6:7.1f} us  {flops / t / 1e12:5.0f} TFLOP/s", flush=True)


def backward(n_heads, n_kv_heads, head_dim, what, lengths):
    q, k, v = (noise(sum(lengths), h, head_dim) for h in (n_heads, n_kv_heads, n_kv_heads))
    begin = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], device="cuda", dtype=torch.int32)
    same = len(set(lengths)) == 1
    if same:
        q, k, v = (x.view(len(lengths), lengths[0], *x.shape[1:]) for x in (q, k, v))
    cu, longest = None if same else begin, max(lengths)
    flops = 5 * sum(n * n for n in lengths) * n_heads * head_dim
    out, lse, seed, offset, _ = flash(q, k, v, cu, cu, longest, longest, 0.0, True, False)
    d_out = torch.randn_like(out)
    times = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        times.append(graph_seconds([lambda: flash_backward(d_out, q, k, v, out, lse, cu, cu, longest, longest, 0.0, True, seed, offset)] * 4))
    torch.use_deterministic_algorithms(False)
    rates = [flops / t / 1e12 for t in times]
    print(f"backward {n_heads:2}/{n_kv_heads} d {head_dim:3}  {what:24} {times[0] * 1e6:8.1f} us  {rates[0]:5.1f} TFLOP/s, deterministic {rates[1]:5.1f}", flush=True)


def main():
    copy = copy_rate()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}; copy {copy / 1e9:.0f} GB/s (read + written)")
    for heads in ((32, 8, 128), (9, 3, 64)):
        for batch, context in ((1, 1024), (16, 1024), (64, 1024), (256, 1024), (64, 4096), (1, 16384)):
            decode(*heads, batch, context, copy)
        for batch, length in ((4, 2048), (1, 8192)):
            prefill(*heads, batch, length)
        backward(*heads, "4 x 2048", [2048] * 4)
        backward(*heads, "1 x 8192", [8192])
        backward(*heads, "mixed, 8192 rows", [4096, 1100, 1000, 700, 500, 300, 250, 150, 96])


main()
