"""The modeling file that troupe writes beside split checkpoints, against troupe itself, on tiny models of two widths.

python tests/python/split_transformers.py build/cpu/troupe   (torch, transformers, safetensors; about a minute)
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCAB, TOLERANCE = 61, 2e-4
FIRST = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
SECOND = dict(hidden_size=48, intermediate_size=56, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=1, head_dim=12, rms_norm_eps=1e-5,
              rope_scaling=dict(rope_type="linear", factor=2.0))


def check(truth, what):
    print(("ok      " if truth else "FAILED  ") + what)
    check.failed |= not truth


check.failed = False


def troupe(*arguments):
    subprocess.run([sys.argv[1], *arguments], check=True, stderr=subprocess.DEVNULL)


def scores(directory, model, ids, *options):
    """troupe score of one sequence, by its key."""
    with open(os.path.join(directory, "in.jsonl"), "w") as file:
        file.write(json.dumps({"input_ids": ids}) + "\n")
    troupe("score", "--model", model, "--input", os.path.join(directory, "in.jsonl"), "--output", os.path.join(directory, "out.jsonl"), "--dtype",
           "float32", *options)
    with open(os.path.join(directory, "out.jsonl")) as file:
        return json.loads(file.readline())


def made(directory, architecture, mlp, name):
    config = dict(architectures=[architecture], model_type="custom_split_llama", path8b=os.path.join(directory, "first"),
                  path70b=os.path.join(directory, "second"), num_layers_8=2, num_layers_70=3, vocab_size=VOCAB, mlp=mlp, adapter_path=None,
                  adapter_init="normal")
    file, out = os.path.join(directory, name + ".json"), os.path.join(directory, name)
    with open(file, "w") as output:
        json.dump(config, output)
    troupe("convert", "split", file, out, "--seed", "3")
    return out


def causal(directory, mlp):
    path = made(directory, "CustomSplitLLamaForCausalLM", mlp, f"causal-{mlp}")
    model, info = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    check(not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), "every tensor of the file is one of the model's")
    model.eval()
    ids = torch.randint(0, VOCAB, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids).logits
        expected = torch.tensor(scores(directory, path, ids[0].tolist())["logprobs"])
        found = torch.log_softmax(logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        check((found - expected).abs().max().item() <= TOLERANCE, f"log-probabilities are troupe's, mlp = {mlp}")
        embeds = model.get_input_embeddings()(ids)
        check(torch.equal(model(inputs_embeds=embeds).logits, logits), "inputs_embeds in place of input_ids")
        for wrong in {}, dict(input_ids=ids, inputs_embeds=embeds):
            try:
                model(**wrong)
                check(False, "exactly one of input_ids and inputs_embeds")
            except ValueError as error:
                check("exactly one of" in str(error), "exactly one of input_ids and inputs_embeds")
        left = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], 1)
        mask = torch.tensor([[0] * 6 + [1] * 50])
        check((model(left, attention_mask=mask).logits[:, 6:] - logits).abs().max().item() <= TOLERANCE, "left padding")
        cached = model.generate(ids[:, :20], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        again = model.generate(ids[:, :20], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=False)
        check(torch.equal(cached, again), "generate with a cache and without")
        shapes = {tuple(layer.keys.shape[1::2]) for layer in model(ids, use_cache=True).past_key_values.layers}
        check(shapes == {(2, 8), (1, 12)}, "a cache with layers of two shapes")
        eager = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, attn_implementation="eager").eval()
        check((eager(ids).logits - logits).abs().max().item() <= TOLERANCE, "eager attention")
    check(model._supports_attention_backend and model.config.base_model_tp_plan["adapter.linear2"] == "rowwise", "attention backend, tensor-parallel plan")
    check(model.get_output_embeddings() is model.lm_head and model.get_input_embeddings() is model.model.embed_tokens, "embeddings")
    gradients = []
    for checkpointing in False, True:
        model.train()
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append(model.model.adapter.linear1.weight.grad.clone())
    check(torch.allclose(*gradients, atol=1e-6), "gradient checkpointing")
    model.save_pretrained(os.path.join(directory, "saved"))
    troupe("convert", "hf", os.path.join(directory, "saved"), os.path.join(directory, f"back-{mlp}"))
    again = scores(directory, os.path.join(directory, f"back-{mlp}"), ids[0].tolist())["logprobs"]
    check(again == expected.tolist() or (torch.tensor(again) - expected).abs().max().item() == 0, "what Transformers saves, troupe reads: the same bits")


def heads(directory):
    ids = torch.randint(0, VOCAB, (1, 40), generator=torch.Generator().manual_seed(2))
    path = made(directory, "CustomSplitLLamaForTokenClassification", True, "value")
    model = AutoModelForTokenClassification.from_pretrained(path, trust_remote_code=True).eval()
    with torch.no_grad():
        found = model(ids).logits[0, :-1, 0]
    expected = torch.tensor(scores(directory, path, ids[0].tolist(), "--value")["values"])
    check(found.shape == expected.shape and (found - expected).abs().max().item() <= TOLERANCE, "values are troupe's")
    path = made(directory, "CustomSplitLLamaForSequenceClassification", False, "reward")
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True).eval()
    with torch.no_grad():
        alone = model(ids).logits
        padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
        check(alone.shape == (1, 1), "a score a sequence")
        check((model(padded, attention_mask=(torch.arange(45) < 40).long()[None]).logits - alone).abs().max().item() <= TOLERANCE, "a score is the last token's")


def main():
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(7)
        for name, options in ("first", FIRST), ("second", SECOND):
            model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=256, initializer_range=0.2, **options))
            model.save_pretrained(os.path.join(directory, name))
        for mlp in False, True:
            causal(directory, mlp)
        heads(directory)
    sys.exit(check.failed)


if __name__ == "__main__":
    main()
