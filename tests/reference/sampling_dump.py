"""Writes sampling.json: what Transformers' logits processors leave of random rows, for rollout/sampler_reference_test.cpp.

Presence and frequency penalties, which Transformers lacks, follow vLLM's apply_penalties (vllm/model_executor/layers/utils.py):
    logits -= frequency_penalty * output_counts; logits -= presence_penalty * (output_counts > 0)
after the repetition penalty. Bias comes before penalties in both.

    python tests/reference/sampling_dump.py
"""
import json
import pathlib

import torch
from transformers.generation import logits_process as lp

torch.manual_seed(5)
VOCAB = 40


def processed(logits, c):
    ids = torch.tensor([c["prompt_ids"] + c["output_ids"]])
    scores = logits[None].clone()
    if c.get("logit_bias"):
        scores = lp.SequenceBiasLogitsProcessor({(int(i),): float(b) for i, b in c["logit_bias"]})(ids, scores)
    if "repetition_penalty" in c:
        scores = lp.RepetitionPenaltyLogitsProcessor(c["repetition_penalty"])(ids, scores)
    counts = torch.bincount(torch.tensor(c["output_ids"], dtype=torch.long), minlength=VOCAB)[None]
    scores = scores - c.get("frequency_penalty", 0.0) * counts
    scores = scores - c.get("presence_penalty", 0.0) * (counts > 0)
    if "allowed_token_ids" in c:
        scores = lp.PrefixConstrainedLogitsProcessor(lambda batch, sent: c["allowed_token_ids"], 1)(ids, scores)
    if "min_tokens" in c:
        scores = lp.MinNewTokensLengthLogitsProcessor(len(c["prompt_ids"]), c["min_tokens"], c["stop_token_ids"], device="cpu")(ids, scores)
    if "temperature" in c:
        scores = lp.TemperatureLogitsWarper(c["temperature"])(ids, scores)
    if "top_k" in c:
        scores = lp.TopKLogitsWarper(c["top_k"])(ids, scores)
    if "top_p" in c:
        scores = lp.TopPLogitsWarper(c["top_p"])(ids, scores)
    if "min_p" in c:
        scores = lp.MinPLogitsWarper(c["min_p"])(ids, scores)
    return torch.softmax(scores[0].double(), -1)


OPTIONS = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.15},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 0.9},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.5, "frequency_penalty": -0.4},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25, "temperature": 0.8, "top_p": 0.9},
    {"logit_bias": [[3, 4.5], [17, -100.0], [8, 1.25]]},
    {"logit_bias": [[3, 4.5], [4, -2.0]], "repetition_penalty": 1.5, "presence_penalty": 1.0},
    {"allowed_token_ids": [2, 3, 5, 11, 30]},
    {"allowed_token_ids": [2, 3, 5, 11, 30], "top_k": 3, "temperature": 2.0},
    {"allowed_token_ids": [2, 3, 5, 11, 30], "top_p": 0.6, "logit_bias": [[5, 3.0]]},
    {"min_tokens": 6, "stop_token_ids": [1, 9]},
    {"min_tokens": 5, "stop_token_ids": [1, 9]},
    {"min_tokens": 9, "stop_token_ids": [2, 3], "allowed_token_ids": [2, 3, 5, 11], "min_p": 0.2},
]

cases = []
for options in OPTIONS:
    for spread in (1.0, 3.0):
        logits = torch.randn(VOCAB) * spread
        c = {"prompt_ids": [3, 4, 4, 12, 20, 39], "output_ids": [4, 8, 8, 21, 3], **options}
        c["expected"] = [float(v) for v in processed(logits, c)]
        c["logits"] = [float(v) for v in logits]
        cases.append(c)

out = pathlib.Path(__file__).parent / "sampling.json"
out.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
