#!/usr/bin/env python3
"""One GRPO step of a tiny random Llama in PyTorch: python step_dump.py DIR  (needs torch, transformers, safetensors)

Writes DIR/{config.json,model.safetensors} (the start), DIR/case.json (groups, options, metrics) and DIR/expected.safetensors
(grad.NAME before clipping, after.NAME). In float64 on float32 weights; every sequence alone, so that nothing is shared in packing."""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

OPTIONS = {"temperature": 0.9, "clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0, "entropy_coeff": 0.02, "lr": 1e-3,
           "weight_decay": 0.1, "grad_clip": 0.05, "loss_agg_mode": "token-mean"}


def rms_norm(self, x):  # Transformers' own goes through float32
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


modeling_llama.LlamaRMSNorm.forward = rms_norm


def make_model():
    torch.manual_seed(5)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
                         attn_implementation="eager")
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # livelier than the default's 0.02, norms included
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3 if p.dim() > 1 else 1 + 0.2 * torch.randn(p.shape))
    return model


def token_values(model, prompt, response):
    ids = torch.tensor([prompt + response])
    logits = model(ids).logits[0, len(prompt) - 1:-1] / OPTIONS["temperature"]
    logp = torch.log_softmax(logits, -1)
    return logp.gather(1, torch.tensor(response)[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def make_groups(model):
    gen = torch.Generator().manual_seed(9)
    groups = []
    # Prompts around a key block's 32 tokens; responses of unequal lengths, one empty.
    for prompt_length, lengths, rewards in [(3, [5, 1, 9, 0], [1, 0, 0, 1]), (33, [4, 12, 2, 7], [0, 0, 1, 0.5]), (32, [6, 3, 3, 31], [1, 1, 0, 1])]:
        draw = lambda n: torch.randint(3, 64, (n,), generator=gen).tolist()
        prompt = draw(prompt_length)
        r = torch.tensor(rewards, dtype=torch.float64)
        advantages = ((r - r.mean()) / (r.std() + 1e-6)).tolist()
        samples = []
        for n in lengths:
            ids, old = draw(n), []
            if n:
                with torch.no_grad():
                    old = (token_values(model, prompt, ids)[0].float() + 0.25 * torch.randn(n, generator=gen)).tolist()
            samples.append({"output_ids": ids, "old_logprobs": old})
        groups.append({"prompt_ids": prompt, "samples": samples, "rewards": rewards, "advantages": advantages})
    return groups


def main(out):
    model = make_model()
    model.save_pretrained(out)
    model = model.double()
    groups = make_groups(model)
    tokens = sum(len(s["output_ids"]) for g in groups for s in g["samples"])
    pg_sum, entropy_sum, kl_sum, clipped = 0, 0, 0, 0
    for g in groups:
        for s, a in zip(g["samples"], g["advantages"]):
            if not s["output_ids"]:
                continue
            logp, entropy = token_values(model, g["prompt_ids"], s["output_ids"])
            ratio = torch.exp(logp - torch.tensor(s["old_logprobs"], dtype=torch.float64))
            l1, l2 = -a * ratio, -a * ratio.clamp(1 - OPTIONS["clip_ratio_low"], 1 + OPTIONS["clip_ratio_high"])
            loss = torch.maximum(l1, l2)
            if a < 0:
                loss = torch.minimum(loss, torch.tensor(-a * OPTIONS["clip_ratio_c"], dtype=torch.float64))
            pg_sum, entropy_sum, kl_sum = pg_sum + loss.sum(), entropy_sum + entropy.sum(), kl_sum - torch.log(ratio).sum().item()
            clipped += int((l2 > l1).sum())
    (pg_sum / tokens - OPTIONS["entropy_coeff"] * entropy_sum / tokens).backward()
    names = dict(model.named_parameters())
    expected = {"grad." + n: p.grad.float().clone() for n, p in names.items()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS["grad_clip"])
    torch.optim.AdamW(model.parameters(), lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"], eps=1e-8).step()
    expected |= {"after." + n: p.detach().float().clone() for n, p in names.items()}
    save_file(expected, out / "expected.safetensors")
    metrics = {"actor/pg_loss": pg_sum.item() / tokens, "actor/entropy": entropy_sum.item() / tokens, "actor/ppo_kl": kl_sum / tokens,
               "actor/pg_clipfrac": clipped / tokens, "actor/grad_norm": norm.item(), "actor/lr": OPTIONS["lr"]}
    (out / "case.json").write_text(json.dumps({"options": OPTIONS, "groups": groups, "metrics": metrics}, separators=(",", ":")) + "\n")
    (out / "generation_config.json").unlink(missing_ok=True)


main(pathlib.Path(sys.argv[1]))
