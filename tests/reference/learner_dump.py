#!/usr/bin/env python3
"""Reference values for learner/: python learner_dump.py > learner.json  (needs torch and numpy)

Losses are written as verl writes them, over padded [samples, tokens] with a mask, in float64; gradients come from autograd."""
import itertools
import json
import math

import numpy as np
import torch

LOW, HIGH, C = 0.2, 0.28, 3.0
ENTROPY_COEFF, KL_COEF, SCALE = 0.01, 0.05, 17.0
TOTAL_TOKENS, TOTAL_SAMPLES = 21, 7  # of the mini-batch: more than the micro-batch below


def f32(x):
    return torch.as_tensor(np.asarray(x, dtype=np.float32).astype(np.float64))


def policy(name, logp, old, adv, mask):
    """-> per-token loss [b, t] (or one per sample for geo_mean), clipped flags [b, t]"""
    nak = torch.clamp(logp - old, -20.0, 20.0)
    ratio = torch.exp(nak)
    lengths = mask.sum(-1).clamp(min=1)
    if name == "vanilla":
        l1, l2 = -adv * ratio, -adv * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
        clip1 = torch.maximum(l1, l2)
        clip2 = torch.min(-adv * C, clip1)
        return torch.where(adv < 0, clip2, clip1), l2 > l1
    if name == "gspo":
        seq = (nak * mask).sum(-1) / lengths
        log_s = torch.clamp(logp - logp.detach() + seq.detach().unsqueeze(-1), max=10.0)
        ratio = torch.exp(log_s)
        l1, l2 = -adv * ratio, -adv * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
        return torch.maximum(l1, l2), l2 > l1
    if name == "cispo":
        clamped = torch.clamp(ratio, 1 - LOW, 1 + HIGH).detach()
        return -clamped * adv * logp, clamped != ratio
    if name == "geo_mean":
        sign = torch.sign(adv)
        clamped = torch.clamp(nak, -LOW, HIGH)
        chosen = sign * torch.min(sign * nak, sign * clamped)
        mean = (chosen * mask).sum(-1) / lengths
        advantage = (adv * mask).sum(-1) / lengths
        return -advantage * torch.exp(mean) * (mask.sum(-1) > 0), (sign * clamped < sign * nak)
    if name == "reinforce":
        return -adv * logp, torch.zeros_like(mask, dtype=torch.bool)
    raise ValueError(name)


def aggregate(x, mask, mode):
    if mode == "token-mean":
        return (x * mask).sum() / TOTAL_TOKENS
    per_sample = (x * mask).sum(-1)
    if mode == "seq-mean-token-mean":
        per_sample = per_sample / mask.sum(-1).clamp(min=1)
    if mode == "seq-mean-token-sum-norm":
        per_sample = per_sample / SCALE
    return per_sample.sum() / TOTAL_SAMPLES


def kl_penalty(kind, logp, ref):
    if kind in ("kl", "k1"):
        return logp - ref
    if kind == "abs":
        return (logp - ref).abs()
    if kind in ("mse", "k2"):
        return 0.5 * (logp - ref).square()
    d = torch.clamp(ref - logp, -20, 20)
    return torch.clamp(torch.exp(d) - d - 1, -10, 10)


def loss_cases():
    rng = np.random.default_rng(7)
    lengths = [5, 0, 3, 6]
    b, t = len(lengths), max(lengths)
    mask = torch.zeros(b, t, dtype=torch.float64)
    for i, n in enumerate(lengths):
        mask[i, :n] = 1
    logp0 = f32(-np.abs(rng.normal(2, 1.5, (b, t))))
    old = f32(logp0.numpy() + rng.normal(0, 0.35, (b, t)))
    old[0, 1] = f32(logp0[0, 1] - 1.7)   # beyond the dual clip
    old[2, 0] = f32(logp0[2, 0] - 25.0)  # beyond the clamp of the log-ratio, both ways
    old[3, 2] = f32(logp0[3, 2] + 22.0)
    ref = f32(logp0.numpy() + rng.normal(0, 0.8, (b, t)))
    ref[0, 2] = f32(logp0[0, 2] + 3.0)   # k3 above 10
    ref[3, 1] = f32(logp0[3, 1] - 21.0)  # beyond k3's clamp
    ref[2, 1] = logp0[2, 1]              # equal: no gradient anywhere
    entropy0 = f32(np.abs(rng.normal(3, 1, (b, t))))
    adv = torch.tensor([-1.25, 0.5, 0.0, 0.75], dtype=torch.float64).unsqueeze(-1).expand(b, t).clone()
    keep = mask.bool()
    flat = lambda x: x[keep].tolist()
    shared = {"lengths": lengths, "logprobs": flat(logp0), "old_logprobs": flat(old), "ref_logprobs": flat(ref), "entropy": flat(entropy0)}
    cases = []
    modes = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
    kinds = ["", "kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3"]
    for flip, name, mode, kind, coeff in itertools.product(
            [1, -1], ["vanilla", "gspo", "cispo", "geo_mean", "reinforce"], modes, kinds, [0.0, ENTROPY_COEFF]):
        # Every loss with every aggregation; every KL type with every aggregation; entropy with every loss. The rest repeats.
        if kind and (name != "vanilla" or coeff or flip < 0):
            continue
        a = flip * adv
        logp, entropy = logp0.clone().requires_grad_(), entropy0.clone().requires_grad_()
        per_token, clipped = policy(name, logp, old, a, mask)
        if name == "geo_mean":
            pg = per_token.sum() / TOTAL_SAMPLES
        else:
            pg = aggregate(per_token, mask, "seq-mean-token-mean" if name == "gspo" else mode)
        ent = aggregate(entropy, mask, mode)
        kl = aggregate(kl_penalty(kind, logp, ref), mask, mode) if kind else torch.zeros((), dtype=torch.float64)
        total = pg + KL_COEF * kl - coeff * ent
        total.backward()
        cases.append({
            "policy_loss": name, "loss_agg_mode": mode, "kl_loss_type": kind, "entropy_coeff": coeff, "advantages": flat(a),
            "policy": pg.item(), "kl": kl.item(), "entropy": ent.item(), "total": total.item(),
            "clipped": int((clipped & keep).sum()), "log_ratio": (torch.clamp(logp0 - old, -20, 20) * mask).sum().item(),
            "d_logprob": flat(logp.grad), "d_entropy": coeff and flat(entropy.grad) or []})
    options = {"low": LOW, "high": HIGH, "c": C, "kl_coef": KL_COEF, "scale": SCALE, "tokens": TOTAL_TOKENS, "samples": TOTAL_SAMPLES}
    return {"options": options, "input": shared, "cases": cases}


def adamw_cases():
    out = []
    for lr, decay, betas, clip in [(1e-2, 0.0, (0.9, 0.999), 0.0), (3e-3, 0.1, (0.9, 0.95), 1.0), (1e-5, 0.01, (0.5, 0.9), 0.05)]:
        gen = torch.Generator().manual_seed(11)
        params = [torch.nn.Parameter(torch.randn(n, generator=gen) * 0.2) for n in (7, 33)]
        start = [p.tolist() for p in params]
        opt = torch.optim.AdamW(params, lr=lr, betas=betas, eps=1e-8, weight_decay=decay)
        steps = []
        for k in range(6):
            grads = [torch.randn(p.shape, generator=gen) * (0 if k == 3 else 0.3) for p in params]
            for p, g in zip(params, grads):
                p.grad = g.clone()
            norm = torch.linalg.vector_norm(torch.cat([g.double() for g in grads])).item()
            if clip:
                torch.nn.utils.clip_grad_norm_(params, clip)
            opt.step()
            steps.append({"grads": [g.tolist() for g in grads], "norm": norm, "params": [p.tolist() for p in params]})
        out.append({"lr": lr, "decay": decay, "betas": betas, "clip": clip, "start": start, "steps": steps})
    return out


def schedule_cases():
    out = []
    for kind, warmup, total, floor in itertools.product(["constant", "linear", "cosine"], [0, 1, 4], [3, 10], [0.0, 0.1]):
        lrs = []
        for t in range(1, total + 3):
            if t < warmup:
                factor = t / warmup
            elif kind == "constant" or total <= warmup:
                factor = 1.0
            else:
                x = min(1.0, (t - warmup) / (total - warmup))
                factor = floor + (1 - floor) * ((1 - x) if kind == "linear" else 0.5 * (1 + math.cos(math.pi * x)))
            lrs.append(2e-4 * factor)
        out.append({"kind": kind, "warmup": warmup, "total": total, "floor": floor, "lr": 2e-4, "lrs": lrs})
    return out


def advantage_cases():
    out = []
    groups = [([1.0, 0, 0, 1], [3, 5, 0, 2]), ([0.1] * 5, [1, 2, 3, 4, 5]), ([0.7], [4]), ([-1.5, 2.25, 0.5], [10, 1, 7]), ([1.0, 0], [0, 0]),
              ([2.0, 2.0, 1.0], [1, 1, 1])]
    for rewards, lengths in groups:
        r, t, n = np.array(rewards), np.array(lengths), len(rewards)
        same = bool((r == r[0]).all()) and n > 1
        std = r.std(ddof=1) if n > 1 else 1.0
        mean = r.mean() if n > 1 else 0.0
        for norm in (True, False):
            scale = 1 / (std + 1e-6) if norm else 1.0
            values = {"grpo": (r - mean) * scale, "rloo": n / (n - 1) * (r - r.mean()) if n > 1 else r,
                      "opo": r if n == 1 else r - ((t * r).sum() / t.sum() if t.sum() else r.mean())}
            if n > 1:
                best, order = int(r.argmax()), np.sort(r)
                values["grpo_passk"] = np.where(np.arange(n) == best, (order[-1] - order[-2]) * scale, 0.0)
            for name, a in values.items():
                out.append({"name": name, "norm": norm, "rewards": rewards, "lengths": lengths, "advantages": [0.0] * n if same else a.tolist()})
    return out


print(json.dumps({"loss": loss_cases(), "adamw": adamw_cases(), "schedule": schedule_cases(), "advantage": advantage_cases()}, separators=(",", ":")))
