"""Random tiny models of every family through the program, against Transformers: scores, and greedy completions where the two best logits are
at least 1e-3 apart. Where float32 itself is off by more (Transformers against itself in float64), twice that is allowed.
python tests/python/families_transformers.py build/cpu/troupe [COUNT [SEED]]   (torch, transformers)"""
import copy
import json
import os
import random
import subprocess
import sys
import tempfile

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config


def rope(r):
    kind = r.choice(["default", "linear", "llama3", "yarn", "dynamic"])
    out = dict(rope_type=kind, rope_theta=r.choice([100.0, 1e4, 1e6]))
    if kind != "default":
        out["factor"] = r.choice([2.0, 3.5, 8.0])
    if kind == "llama3":
        out |= dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=r.choice([16, 64]))
    if kind == "yarn":
        out |= dict(original_max_position_embeddings=r.choice([16, 50]))
        out |= r.choice([{}, dict(beta_fast=8.0, beta_slow=2.0), dict(attention_factor=0.8), dict(mscale=0.7, mscale_all_dim=1.3), dict(truncate=False)])
    return out


def config(r):
    family = r.choice([LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig])
    kv = r.choice([1, 2, 3])
    heads, head_dim = kv * r.choice([1, 2, 3]), r.choice([8, 12, 16, 32, 40, 64])
    o = dict(vocab_size=r.choice([61, 100, 128]), num_key_value_heads=kv, num_attention_heads=heads, num_hidden_layers=r.choice([1, 2, 3]),
             intermediate_size=r.choice([20, 48, 100]), max_position_embeddings=160, tie_word_embeddings=r.random() < 0.5,
             rms_norm_eps=r.choice([1e-6, 1e-5]), initializer_range=0.2, bos_token_id=1, eos_token_id=2, rope_parameters=rope(r))
    if family is Qwen2Config:
        o["hidden_size"] = heads * head_dim
    else:
        o |= dict(hidden_size=heads * r.choice([4, 8, 12]), head_dim=head_dim)
    if family is LlamaConfig:
        o |= dict(attention_bias=r.random() < 0.5, mlp_bias=r.random() < 0.5)
    elif family is Qwen3Config:
        o["attention_bias"] = r.random() < 0.5
    if family in (Qwen2Config, Qwen3Config) and r.random() < 0.6:
        o |= dict(use_sliding_window=True, sliding_window=r.choice([1, 5, 32, 33]), max_window_layers=r.choice([0, 1, 2]))
    elif family is MistralConfig:
        o["sliding_window"] = r.choice([None, 1, 7, 32, 70])
    return family(**o)


def main():
    program, count, seed = (sys.argv[1:] + ["20", "1"][len(sys.argv) - 2:])[:3]
    count, seed = int(count), int(seed)
    for case in range(count):
        r = random.Random(seed * 1000 + case)
        cfg = config(r)
        torch.manual_seed(case)
        model = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").float().eval()
        for key, p in model.named_parameters():
            if p.dim() == 1:
                torch.nn.init.uniform_(p, *((-0.5, 0.5) if key.endswith("bias") else (0.5, 1.5)))
        double = copy.deepcopy(model).double()
        with tempfile.TemporaryDirectory() as d:
            model.save_pretrained(d)
            tokenizer = Tokenizer(BPE({f"t{i}": i for i in range(cfg.vocab_size)}, []))
            tokenizer.decoder = ByteLevel()
            tokenizer.save(d + "/tokenizer.json")
            rows = [[r.randrange(cfg.vocab_size) for _ in range(r.choice([2, 31, 32, 33, 70, 140]))] for _ in range(4)]
            with open(d + "/in.jsonl", "w") as f:
                f.writelines(json.dumps({"input_ids": row}) + "\n" for row in rows)
            files = ["--model", d, "--dtype", "float32", "--input", d + "/in.jsonl", "--output"]
            subprocess.run([program, "score", *files, d + "/score.jsonl"], check=True)
            subprocess.run([program, "generate", *files, d + "/gen.jsonl", "--temperature", "0", "--max-tokens", "12", "--ignore-eos"], check=True,
                           stderr=subprocess.DEVNULL)
            worst, own, greedy = 0.0, 0.0, 0
            for row, line, gen in zip(rows, open(d + "/score.jsonl"), open(d + "/gen.jsonl")):
                with torch.no_grad():
                    logp = torch.log_softmax(model(torch.tensor([row])).logits[0], -1)
                    exact = torch.log_softmax(double(torch.tensor([row])).logits[0], -1)
                chosen = torch.tensor(row[1:])[:, None]
                want = logp[:-1].gather(1, chosen)[:, 0]
                own = max(own, (want - exact[:-1].gather(1, chosen)[:, 0]).abs().max().item())
                worst = max(worst, (want - torch.tensor(json.loads(line)["logprobs"])).abs().max().item())
                ids = list(row)
                for token in json.loads(gen)["output_ids"]:
                    with torch.no_grad():
                        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
                    if best.values[0] - best.values[1] >= 1e-3:
                        assert best.indices[0] == token, (case, cfg, len(ids))
                        greedy += 1
                    ids.append(token)
            assert worst <= max(2e-4, 2 * own), (case, worst, own, cfg)
            print(f"{case}: {cfg.model_type}, {cfg.rope_parameters['rope_type']}: log-probs within {worst:.1e}, {greedy} greedy tokens equal", flush=True)


if __name__ == "__main__":
    main()
