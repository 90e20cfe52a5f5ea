"""What troupe writes, read by Transformers: a run's checkpoint and `convert hf` in float32 and bfloat16, and `convert gguf` where Python has gguf.
Logits, ids, chat template, generation_config, dtypes, sizes and metadata. python tests/python/export_transformers.py build/cpu/troupe"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

TEXTS = ["The quick brown fox.", "  two  spaces\n\nand lines", "naïve 你好 😀 e\u0301", "<|im_start|>user\nhi<|im_end|>", "1234567890 a+b=c", ""]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHAT = [{"role": "user", "content": " count "}, {"role": "assistant", "content": "one two"}]


# Transformers rebuilds the tokenizer of a Qwen2 or Qwen3 directory with these, whatever its files say.
QWEN_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def make_tokenizer(qwen=False):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if qwen:
        t.normalizer = normalizers.NFC()
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([AddedToken(s, special=True) for s in ("<|bos|>", "<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|bos|>", eos_token="<|im_end|>", chat_template=TEMPLATE)


def make_source(family, folder):
    tokenizer = make_tokenizer(family in (Qwen2Config, Qwen3Config))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   max_position_embeddings=128, tie_word_embeddings=family is Qwen2Config, initializer_range=0.2, eos_token_id=end)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(family(**options)).float().eval()
    model.generation_config = GenerationConfig(eos_token_id=[end, 0], temperature=0.7, top_p=0.9, do_sample=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(program, source, folder):
    rows, config = folder / "rows.jsonl", folder / "run.toml"
    rows.write_text("".join(json.dumps({"messages": CHAT + [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "yes"}]}) + "\n" for i in range(4)))
    config.write_text(f'[run]\nname = "x"\ntask = "sft"\ndir = "{folder / "run"}"\ntotal_steps = 2\nsave_freq = 1\n[model]\npath = "{source}"\ndtype = "float32"\n'
                      f'[data]\ntrain_files = ["{rows}"]\nmax_prompt_length = 64\nmax_response_length = 60\ntrain_batch_size = 4\n[learner.optim]\nlr = 1e-2\n')
    subprocess.run([program, "train", config], check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


def tensors_of(folder):
    out = {}
    for file in folder.glob("*.safetensors"):
        if file.name.startswith("optimizer"):
            continue
        with safe_open(file, "pt") as f:
            assert f.metadata()["format"] == "pt", file
            out |= {k: f.get_tensor(k) for k in f.keys()}
        width = sum(t.numel() * t.element_size() for t in out.values())
        assert width < file.stat().st_size < width + 100_000, (file, width)
    return out


def log_probs(model, rows):
    with torch.no_grad():
        return [torch.log_softmax(model(torch.tensor([r])).logits[0].float(), -1)[:-1].gather(1, torch.tensor(r[1:])[:, None])[:, 0] for r in rows]


def run_lines(program, command, folder, rows, *flags):
    files = [folder.parent / "in.jsonl", folder.parent / "out.jsonl"]
    files[0].write_text("".join(json.dumps(r) + "\n" for r in rows))
    subprocess.run([program, command, "--model", folder, "--input", files[0], "--output", files[1], *flags], check=True)
    return [json.loads(line) for line in files[1].open()]


def check_model(program, folder, dtype):
    """The model that Transformers makes of the directory has exactly its tensors and troupe's log-probabilities; returns those tensors."""
    stored = tensors_of(folder)
    assert {t.dtype for t in stored.values()} == {dtype}, {k: t.dtype for k, t in stored.items()}
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    state = model.state_dict()
    assert all(torch.equal(state[k], t) for k, t in stored.items())
    r = random.Random(2)
    rows = [[r.randrange(model.config.vocab_size) for _ in range(n)] for n in (2, 33, 100)]
    ours = [torch.tensor(line["logprobs"]) for line in run_lines(program, "score", folder, [{"input_ids": x} for x in rows], "--dtype", "float32")]
    worst = max((a - b).abs().max().item() for a, b in zip(ours, log_probs(model.float().eval(), rows)))
    assert worst <= 2e-4, worst
    return stored, worst


def check_tokenizer(program, folder, original):
    loaded = AutoTokenizer.from_pretrained(folder)
    for add in (True, False):
        ours = run_lines(program, "tokenize", folder, [{"text": t, "add_special_tokens": add} for t in TEXTS])
        for text, line in zip(TEXTS, ours):
            want = original(text, add_special_tokens=add).input_ids
            assert loaded(text, add_special_tokens=add).input_ids == want == line["ids"], text
    for ids in (loaded(t).input_ids for t in TEXTS):
        assert loaded.decode(ids) == original.decode(ids)
    return loaded


def check_chat(loaded, original):
    assert loaded.chat_template == original.chat_template
    for add in (True, False):
        assert loaded.apply_chat_template(CHAT, add_generation_prompt=add, tokenize=False) == original.apply_chat_template(CHAT, add_generation_prompt=add, tokenize=False)


def check_run(program, family):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source = folder / "source"
        make_source(family, source)
        original = AutoTokenizer.from_pretrained(source)
        run = train(program, source, folder)
        written = {"checkpoint": (run / "checkpoints/step-000002", torch.float32)}
        for dtype in (torch.float32, torch.bfloat16):
            out = folder / str(dtype).split(".")[1]
            subprocess.run([program, "convert", "hf", run, out, *(["--dtype", "bfloat16"] if dtype == torch.bfloat16 else [])], check=True, stderr=subprocess.DEVNULL)
            written[f"convert hf {dtype}"] = (out, dtype)
        stored = {}
        for kind, (out, dtype) in written.items():
            stored[kind], worst = check_model(program, out, dtype)
            check_chat(check_tokenizer(program, out, original), original)
            want, got = (GenerationConfig.from_pretrained(d).to_diff_dict() for d in (source, out))
            assert {k: v for k, v in want.items() if k != "transformers_version"} == {k: v for k, v in got.items() if k != "transformers_version"}, (want, got)
            if kind != "checkpoint":
                declared = json.loads((out / "config.json").read_text())
                assert declared.get("dtype", declared.get("torch_dtype")) == str(dtype).split(".")[1], declared
            print(f"{family.__name__}, {kind}: log-probs within {worst:.1e}; ids, chat template and generation_config equal", flush=True)
        masters = stored["checkpoint"]
        before = tensors_of(source)
        assert all(torch.equal(masters[k], t) for k, t in stored["convert hf torch.float32"].items())
        assert all(torch.equal(masters[k].bfloat16(), t) for k, t in stored["convert hf torch.bfloat16"].items())
        assert any(not torch.equal(before[k], t) for k, t in masters.items()), "the run trained nothing"


def write_gguf(gguf, file, model, tokenizer, kind):
    """A Llama as llama.cpp stores it: rows of q and k in its own order, linear weights quantised."""
    c = model.config
    w = gguf.GGUFWriter(file, "llama")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {i: t for t, i in data["model"]["vocab"].items()} | {t["id"]: t["content"] for t in data["added_tokens"]}
    special = {t["id"] for t in data["added_tokens"]}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([names[i] for i in range(len(names))])
    w.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(names))])
    w.add_token_merges([" ".join(m) for m in data["model"]["merges"]])
    w.add_bos_token_id(tokenizer.bos_token_id)
    w.add_eos_token_id(tokenizer.eos_token_id)
    w.add_add_bos_token(False)
    w.add_chat_template(tokenizer.chat_template)
    parts = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    want = {}
    for key, tensor in model.state_dict().items():
        name, x = key.removesuffix(".weight"), tensor
        block = name.split(".", 3)[2:] if name.startswith("model.layers.") else None
        name = f"blk.{block[0]}.{parts[block[1]]}" if block else parts[name]
        heads = c.num_attention_heads if name.endswith("attn_q") else c.num_key_value_heads if name.endswith("attn_k") else 0
        if heads:
            x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        stored = gguf.quants.quantize(x.numpy(), kind if x.dim() == 2 else gguf.GGMLQuantizationType.F32)
        w.add_tensor(name + ".weight", stored, raw_dtype=kind if x.dim() == 2 else gguf.GGMLQuantizationType.F32)
        y = torch.from_numpy(gguf.quants.dequantize(stored, kind if x.dim() == 2 else gguf.GGMLQuantizationType.F32).copy())
        want[key] = y.reshape(heads, -1, 2, y.shape[1]).swapaxes(1, 2).reshape(y.shape) if heads else y
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return want


def check_gguf(program):
    try:
        import gguf
    except ImportError:
        print("convert gguf: not compared, Python has no gguf")
        return
    for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q5_1):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            tokenizer = make_tokenizer()
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                                                num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2)).float().eval()
            want = write_gguf(gguf, folder / "m.gguf", model, tokenizer, kind)
            for dtype in ("float32", "bfloat16"):
                out = folder / dtype
                subprocess.run([program, "convert", "gguf", folder / "m.gguf", out, "--dtype", dtype], check=True, stderr=subprocess.DEVNULL)
                stored, worst = check_model(program, out, getattr(torch, dtype))
                assert all(torch.equal(t, want[k].to(t.dtype)) for k, t in stored.items()), kind
                check_chat(check_tokenizer(program, out, tokenizer), tokenizer)
            print(f"convert gguf {kind.name}: tensors are gguf-py's bits; log-probs within {worst:.1e}; ids and chat template equal", flush=True)


def main():
    os.environ["HF_HUB_OFFLINE"] = "1"
    program = os.path.abspath(sys.argv[1])
    for family in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config):
        check_run(program, family)
    check_gguf(program)


if __name__ == "__main__":
    main()
