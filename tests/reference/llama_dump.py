"""Tiny random Llama models with log-probs, entropies and gradients from Transformers, for model/model_test.cpp.

python tests/reference/llama_dump.py   (torch, transformers, safetensors; writes tests/reference/data/llama-*)
"""
import os
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {
    "tied": dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
    "llama3": dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=12, tie_word_embeddings=False,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        rope_theta=500.0),
    "linear": dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False,
                   rope_scaling=dict(rope_type="linear", factor=2.5), rms_norm_eps=1e-5),
}
PROMPTS = [11, 33, 64]          # lengths; around the 32-token blocks
RESPONSES = [[5, 1, 40], [3, 32], [7, 20]]
TEMPERATURE = 0.7


def main():
    for name, options in CASES.items():
        torch.manual_seed(7)
        config = LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=256,
                             initializer_range=0.2, bos_token_id=1, eos_token_id=2, **options)
        model = LlamaForCausalLM(config).float().eval()
        for p in model.parameters():  # norms too
            if p.dim() == 1:
                torch.nn.init.uniform_(p, 0.5, 1.5)
        directory = os.path.join(HERE, "data", "llama-" + name)
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
