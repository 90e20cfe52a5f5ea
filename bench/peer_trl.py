"""TRL's GRPOTrainer on the quickstart's task and sizes, on the CPU: seconds a step.

seconds_per_step = median over the steps after the first, of generation, scoring, forward, backward and update of 16 prompts x 8 samples."""
import argparse
import json
import re
import statistics
import tempfile
import time

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PROMPTS, SAMPLES, NEW = 16, 8, 16


def last_number(completions, answer, **_):
    """The quickstart's reward, without its condition on the end token."""
    rewards = []
    for completion, wanted in zip(completions, answer):
        found = re.findall(r"-?[0-9]+(?:\.[0-9]+)?", completion[0]["content"])
        rewards.append(float(bool(found) and float(found[-1]) == float(wanted)))
    return rewards


class step_clock(TrainerCallback):
    """Seconds between the ends of steps."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **_):
        self.ends.append(time.perf_counter())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--data", default="configs/quickstart/train.jsonl")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--micro_batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = step_clock()
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch, use_cpu=True, bf16=True, max_steps=args.steps, learning_rate=1e-5, lr_scheduler_type="constant", beta=0.0,
            num_generations=SAMPLES, per_device_train_batch_size=args.micro_batch,
            gradient_accumulation_steps=PROMPTS * SAMPLES // args.micro_batch, max_completion_length=NEW, temperature=1.0,
            max_grad_norm=1.0, weight_decay=0.0, gradient_checkpointing=False, save_strategy="no", report_to=[], logging_steps=1, seed=1)
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), args=config, reward_funcs=last_number,
            train_dataset=load_dataset("json", data_files=args.data, split="train", cache_dir=scratch),
            processing_class=AutoTokenizer.from_pretrained(args.model), callbacks=[clock])
        trainer.train()
    seconds = [b - a for a, b in zip(clock.ends, clock.ends[1:])]
    print(json.dumps({"peer": "trl.GRPOTrainer", "prompts": PROMPTS, "samples": SAMPLES, "threads": args.threads,
                      "seconds_per_step": round(statistics.median(seconds), 2), "steps": [round(s, 2) for s in seconds]}))


if __name__ == "__main__":
    main()
