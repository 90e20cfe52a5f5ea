#!/usr/bin/env python3
"""widen_llama.py SRC DST WIDTH [SEED]: a Llama directory as one of another width that computes the same function.

In place of the residual stream x the wide model has q x, where q [WIDTH, h] has orthogonal columns of length sqrt(WIDTH / h), drawn
with SEED: RMSNorm divides both by the same number. A norm's gain goes into the projections behind it, which read q^T / q^T q; what adds
to the stream is multiplied by q. The map from the narrow model's hidden states to the wide one's is thus known, and written into
DST/known/embedding.safetensors, for what is fitted to be compared with. Float64 throughout, stored as float32; the head is untied.
"""
import json
import pathlib
import shutil
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def widen(tensors, config, q):
    h, wide = config["hidden_size"], q.shape[0]
    read = q.T * (h / wide)
    out = {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"] @ q.T}
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    out["lm_head.weight"] = (head * tensors["model.norm.weight"]) @ read
    out["model.norm.weight"] = torch.ones(wide, dtype=torch.float64)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for norm, readers, writer in (("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),
                                      ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")):
            gain = tensors[f"{layer}{norm}.weight"]
            out[f"{layer}{norm}.weight"] = torch.ones(wide, dtype=torch.float64)
            for name in readers:
                out[f"{layer}{name}.weight"] = (tensors[f"{layer}{name}.weight"] * gain) @ read
            out[f"{layer}{writer}.weight"] = q @ tensors[f"{layer}{writer}.weight"]
    return out


def main(source, target, wide, seed):
    config = json.loads((source / "config.json").read_text())
    h = config["hidden_size"]
    if wide < h:
        sys.exit(f"WIDTH {wide} is less than the model's hidden_size {h}")
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            tensors |= {name: reader.get_tensor(name).double() for name in reader.keys()}
    drawn = torch.randn(wide, h, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(drawn).Q * (wide / h) ** 0.5
    target.mkdir(parents=True)
    save_file({name: x.float().contiguous() for name, x in widen(tensors, config, q).items()}, target / "model.safetensors", {"format": "pt"})
    (target / "known").mkdir()
    save_file({"embedding": q.float().contiguous()}, target / "known" / "embedding.safetensors")
    config |= {"head_dim": config.get("head_dim") or h // config["num_attention_heads"], "hidden_size": wide, "tie_word_embeddings": False,
               "torch_dtype": "float32"}
    config.pop("dtype", None)
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1)
