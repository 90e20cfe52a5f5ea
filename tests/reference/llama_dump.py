"""Tiny random models of the Llama kind with log-probs, entropies and gradients from Transformers, for model/model_test.cpp.

python tests/reference/llama_dump.py [CASE...]   (torch, transformers, safetensors; writes tests/reference/data/llama-* and family-*)
"""
import os
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {
    "llama-tied": dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-llama3": dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=12, tie_word_embeddings=False,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        rope_theta=500.0),
    "llama-linear": dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False,
                   rope_scaling=dict(rope_type="linear", factor=2.5), rms_norm_eps=1e-5),
    "family-biases": dict(num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                          rope_parameters=dict(rope_type="yarn", rope_theta=300.0, factor=4.0, original_max_position_embeddings=24)),
    "family-qwen2": dict(family=Qwen2Config, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         use_sliding_window=True, sliding_window=9, max_window_layers=1, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "family-qwen3": dict(family=Qwen3Config, num_attention_heads=4, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False,
                         attention_bias=True, rope_parameters=dict(
                             rope_type="yarn", rope_theta=500.0, factor=3.0, original_max_position_embeddings=40, beta_fast=4, beta_slow=1,
                             attention_factor=1.25)),
    "family-mistral": dict(family=MistralConfig, num_attention_heads=4, num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
                           sliding_window=40, rope_parameters=dict(rope_type="default", rope_theta=1e4)),
}
PROMPTS = [11, 33, 64]          # lengths; around the 32-token blocks
RESPONSES = [[5, 1, 40], [3, 32], [7, 20]]
TEMPERATURE = 0.7


def main():
    for name in sys.argv[1:] or CASES:
        options = dict(CASES[name])
        torch.manual_seed(7)
        config = options.pop("family", LlamaConfig)(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=256,
                             initializer_range=0.2, bos_token_id=1, eos_token_id=2, **options)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        for key, p in model.named_parameters():  # norms and biases too
            if p.dim() == 1:
                torch.nn.init.uniform_(p, *((-0.5, 0.5) if key.endswith("bias") else (0.5, 1.5)))
        directory = os.path.join(HERE, "data", name)
        model.save_pretrained(directory)
        if os.path.exists(os.path.join(directory, "generation_config.json")):
            os.remove(os.path.join(directory, "generation_config.json"))
        out, loss = {}, 0.0
        generator = torch.Generator().manual_seed(3)
        for g, (n_prompt, lengths) in enumerate(zip(PROMPTS, RESPONSES)):
            prompt = torch.randint(0, 61, (n_prompt,), generator=generator)
            out[f"prompt.{g}"] = prompt.int()
            for s, n in enumerate(lengths):
                response = torch.randint(0, 61, (n,), generator=generator)
                logits = model(torch.cat([prompt, response])[None]).logits[0, n_prompt - 1:-1] / TEMPERATURE
                logp = torch.log_softmax(logits, -1)
                entropy = -(logp.exp() * logp).sum(-1)
                picked = logp.gather(1, response[:, None])[:, 0]
                c = torch.randn(n, generator=generator)
                e = torch.randn(n, generator=generator) * 0.3
                loss = loss + (c * picked).sum() + (e * entropy).sum()
                for key, value in dict(response=response.int(), logprobs=picked, entropy=entropy, d_logprob=c, d_entropy=e).items():
                    out[f"{key}.{g}.{s}"] = value.detach().contiguous()
        loss.backward()
        for key, p in model.named_parameters():
            out["grad." + key] = p.grad.contiguous()
        save_file(out, os.path.join(directory, "case.safetensors"))


if __name__ == "__main__":
    main()
