#!/usr/bin/env python3
"""A step of sft and two of distill on tests/reference/step's tiny Llama in PyTorch: python sft_dump.py STEP_DIR DIR  (needs torch, transformers)

Writes DIR/teacher (another random Llama of the same vocabulary), DIR/case.json (rows, options, losses) and DIR/{sft,top,full}.safetensors
(grad.NAME before clipping, after.NAME). In float64 on float32 weights; every row alone, so that nothing is shared in packing."""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

OPTIONS = {"top_k": 5, "lr": 1e-3, "weight_decay": 0.1, "grad_clip": 0.05}


def rms_norm(self, x):  # Transformers' own goes through float32
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


modeling_llama.LlamaRMSNorm.forward = rms_norm


def make_teacher(out):
    torch.manual_seed(6)
    config = LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
                         max_position_embeddings=128, rms_norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
                         attn_implementation="eager")
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.2 if p.dim() > 1 else 1 + 0.2 * torch.randn(p.shape))
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    return model.double()


def make_rows():
    """Lengths around a key block's 32 tokens; one, several and all tokens learnt."""
    gen = torch.Generator().manual_seed(10)
    spans = [(9, [(3, 9)]), (40, [(4, 9), (20, 33), (39, 40)]), (33, [(1, 33)]), (2, [(1, 2)]), (64, [(31, 34)])]
    return [{"ids": torch.randint(3, 64, (n,), generator=gen).tolist(), "targets": [t for a, b in s for t in range(a, b)]} for n, s in spans]


def row_logits(model, row):
    return model(torch.tensor([row["ids"]])).logits[0, [t - 1 for t in row["targets"]]]


def token_losses(kind, model, teacher, row):
    logp = torch.log_softmax(row_logits(model, row), -1)
    if kind == "sft":
        return -logp.gather(1, torch.tensor([row["ids"][t] for t in row["targets"]])[:, None])[:, 0]
    with torch.no_grad():
        z = row_logits(teacher, row)
        if kind == "top":  # the teacher's softmax over its k largest logits
            z = torch.full_like(z, -torch.inf).scatter(1, z.topk(OPTIONS["top_k"]).indices, z.topk(OPTIONS["top_k"]).values)
        q = torch.softmax(z, -1)
    return torch.where(q > 0, q * (torch.where(q > 0, q, 1.0).log() - logp), 0.0).sum(-1)


def main(step, out):
    out.mkdir(exist_ok=True)
    teacher, rows, metrics = make_teacher(out / "teacher"), make_rows(), {}
    tokens = sum(len(r["targets"]) for r in rows)
    for kind in ("sft", "top", "full"):
        model = LlamaForCausalLM.from_pretrained(step, attn_implementation="eager", dtype=torch.float32).double()
        loss = sum(token_losses(kind, model, teacher, r).sum() for r in rows) / tokens
        loss.backward()
        names = dict(model.named_parameters())
        expected = {"grad." + n: p.grad.float().clone() for n, p in names.items()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS["grad_clip"])
        torch.optim.AdamW(model.parameters(), lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"], eps=1e-8).step()
        expected |= {"after." + n: p.detach().float().clone() for n, p in names.items()}
        save_file(expected, out / f"{kind}.safetensors")
        # The mean over rows of a row's mean, for another loss_agg_mode.
        fresh = LlamaForCausalLM.from_pretrained(step, attn_implementation="eager", dtype=torch.float32).double()
        with torch.no_grad():
            by_row = [token_losses(kind, fresh, teacher, r).mean().item() for r in rows]
        metrics[kind] = {"train/loss": loss.item(), "actor/grad_norm": norm.item(), "actor/lr": OPTIONS["lr"],
                         "seq-mean-token-mean": sum(by_row) / len(by_row)}
    (out / "case.json").write_text(json.dumps({"options": OPTIONS, "rows": rows, "metrics": metrics}, separators=(",", ":")) + "\n")


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
