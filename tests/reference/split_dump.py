"""Tiny split models and Llamas with every kind of head: outputs and gradients from Transformers, for model/split_test.cpp.

python tests/reference/split_dump.py   (torch, transformers, safetensors; writes tests/reference/data/split-*)
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "python"))
import modeling_custom_split_llama as split  # noqa: E402

VOCAB, COLUMNS = 61, 40
FIRST = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256, tie_word_embeddings=True, rms_norm_eps=1e-5, pad_token_id=0,
             rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
             rope_theta=500.0)
SECOND = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=6,
              max_position_embeddings=512, tie_word_embeddings=False, rms_norm_eps=1e-6, pad_token_id=0,
              rope_scaling=dict(rope_type="linear", factor=2.5))


def random_weights(model):
    for p in model.parameters():
        if p.dim() == 1 and p.numel() > 1:
            torch.nn.init.uniform_(p, 0.5, 1.5)
        else:
            torch.nn.init.normal_(p, 0, 0.25)


def batch():
    """Row 0 is padded on the left, row 1 on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCAB, (2, COLUMNS), generator=generator)
    mask = torch.ones(2, COLUMNS, dtype=torch.long)
    mask[0, :7], mask[1, 35:] = 0, 0
    return ids * mask, mask


def output_of(model, head, **inputs):
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if head == "none":
        return model.model(position_ids=positions, use_cache=False, **inputs).last_hidden_state
    return model(position_ids=positions, use_cache=False, **inputs).logits


def run(models, directory, config):
    """models: head -> model; those after the first get its weights."""
    ids, mask = batch()
    out = {"ids": ids.int(), "mask": mask.to(torch.uint8)}
    weights, shared = {}, None
    for head, model in models.items():
        model.float().eval()
        random_weights(model)
        if shared is not None:
            model.model.load_state_dict(shared)
        if "score.weight" in weights and head == "reward":
            model.score.load_state_dict({"weight": weights["score.weight"]})
        shared = model.model.state_dict()
        weights = {**{key: value.clone() for key, value in model.state_dict().items()}, **weights}
        generator = torch.Generator().manual_seed(5)
        result = output_of(model, head, input_ids=ids, attention_mask=mask)
        coefficients = torch.randn(result.shape, generator=generator)
        if head != "reward":
            coefficients = coefficients * mask[..., None]
            result = result * mask[..., None]
        (result * coefficients).sum().backward()
        out[head + ".out"], out[head + ".d_out"] = result.detach().contiguous(), coefficients
        for key, p in model.named_parameters():
            if p.grad is not None and key != "score.bias":
                out[f"{head}.grad.{key}"] = p.grad.contiguous()
        model.zero_grad()
    first = next(iter(models.values()))
    if "lm" in models:
        embeds = torch.randn(2, COLUMNS, first.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(9))
        out["embeds"] = embeds
        out["lm.embeds_out"] = (output_of(models["lm"], "lm", inputs_embeds=embeds, attention_mask=mask) * mask[..., None]).detach().contiguous()
    directory = os.path.join(HERE, "data", directory)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    save_file(weights, os.path.join(directory, "weights.safetensors"))
    save_file(out, os.path.join(directory, "case.safetensors"))
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
        file.write("\n")


def plain(config):
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "rope_parameters")
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **{key: value for key, value in config.to_dict().items() if key in keep}}


def main():
    torch.manual_seed(7)
    first, second = LlamaConfig(**FIRST), LlamaConfig(**SECOND)
    for name, mlp in ("mlp", True), ("linear", False):
        config = dict(architectures=["CustomSplitLLamaForCausalLM"], model_type="custom_split_llama", num_layers_8=2, num_layers_70=2, vocab_size=VOCAB,
                      mlp=mlp, adapter_path=None, adapter_init="identity", config_8b=plain(first), config_70b=plain(second))
        made = lambda cls: cls(split.CustomSplitLLamaConfig(**{**config, "num_labels": 1, "pad_token_id": 0}))  # noqa: E731
        models = {"lm": made(split.CustomSplitLLamaForCausalLM)}
        if mlp:
            models["value"] = made(split.CustomSplitLLamaForTokenClassification)
            models["reward"] = made(split.CustomSplitLLamaForSequenceClassification)
            models["none"] = made(split.CustomSplitLLamaForCausalLM)
        run(models, "split-" + name, config)
    first = LlamaConfig(**{**FIRST, "tie_word_embeddings": False, "num_labels": 1, "num_hidden_layers": 2})
    run({"lm": LlamaForCausalLM(first), "value": LlamaForTokenClassification(first), "reward": LlamaForSequenceClassification(first),
         "none": LlamaForCausalLM(first)}, "split-llama", plain(first))


if __name__ == "__main__":
    main()
