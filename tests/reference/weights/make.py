"""Makes the files beside this script: what the safetensors and gguf packages write, and gguf-py's dequantised values.

Needs torch, numpy, safetensors and gguf. Run in this folder; the output is the same every time.
"""

import json

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

ALL_TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Where the float16 scales lie in a block.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def mixed() -> None:
    """Tensors of five dtypes; element k of a float tensor is (k - 4) / 8, of an integer tensor k - 2."""
    floats = lambda n, t: ((torch.arange(n) - 4) / 8).to(t)
    save_file(
        {
            "a.weight": floats(15, torch.float32).reshape(3, 5),
            "b": floats(7, torch.bfloat16),
            "empty": torch.zeros(0, 3),
            "half": floats(6, torch.float16).reshape(1, 2, 3),
            "ids": torch.arange(4) - 2,
            "scalar": torch.tensor(2.5, dtype=torch.float64),
        },
        "mixed.safetensors",
        metadata={"format": "pt"},
    )


# Float16 at its ends: both zeros, subnormals, the least normal, neighbours of 1, the largest.
EXTREMES = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3BFF, 0x3C01, 0xBC01, 0x7BFF, 0xFBFF], np.uint16)


def random_blocks(rng: np.random.Generator, name: str) -> np.ndarray:
    """Four rows of 256 elements: every bit of the quants random; two rows of ordinary scales, two of extreme ones, all finite."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if name in ("F32", "F16", "BF16"):
        bits = 32 if name == "F32" else 16
        extremes = rng.integers(0, 2**bits, (2, 256), dtype=np.uint32)
        inf = 0x7C00 if name == "F16" else 0x7F80 << bits - 16
        extremes[extremes & inf == inf] &= ~np.uint32(inf)  # subnormals instead of infinities and NaNs
        ordinary = rng.standard_normal((2, 256)).astype(np.float16 if name == "F16" else np.float32)
        ordinary = ordinary.view(np.uint16 if name == "F16" else np.uint32).astype(np.uint32) >> (16 if name == "BF16" else 0)
        whole = np.concatenate([ordinary, extremes]).astype(np.uint32 if name == "F32" else np.uint16)
        return whole.view({"F32": np.float32, "F16": np.float16, "BF16": np.uint8}[name])
    blocks = rng.integers(0, 256, (1024 // block, size), dtype=np.uint8)
    half = len(blocks) // 2
    for at in SCALES[name]:
        ordinary = rng.standard_normal(half).astype(np.float16).view(np.uint16)
        extremes = rng.choice(EXTREMES, half, replace=half > len(EXTREMES))
        blocks[:, at : at + 2] = np.concatenate([ordinary, extremes]).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(4, -1)


def quants() -> None:
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter("quants.gguf", "test")
    expected = {}
    for name in ALL_TYPES:
        kind = gguf.GGMLQuantizationType[name]
        data = random_blocks(rng, name)
        writer.add_tensor(name.lower(), data, raw_dtype=kind)
        expected[name.lower()] = torch.from_numpy(dequantize(data, kind).astype(np.float32).reshape(4, 256).copy())
    close(writer)
    save_file(expected, "quants.safetensors", metadata={"format": "pt"})


def metadata() -> None:
    """A value of every metadata type."""
    writer = gguf.GGUFWriter("metadata.gguf", "test")
    for bits in (8, 16, 32, 64):
        getattr(writer, f"add_uint{bits}")(f"u{bits}", 2**bits - 1 if bits < 64 else 2**63 - 1)
        getattr(writer, f"add_int{bits}")(f"i{bits}", -(2 ** (bits - 1)))
    writer.add_float32("f32", 1e-5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "déjà\nvu")
    writer.add_array("texts", ["a", "", "ü"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("reals", [0.5, 1.5])
    writer.add_array("nested", [[1, 2], [3]])
    close(writer)


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SIZES = {"hidden": 16, "intermediate": 24, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 270}


def hugging_face_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    s, kv = SIZES, SIZES["hidden"] // SIZES["heads"] * SIZES["kv_heads"]
    tensors = {"model.embed_tokens.weight": torch.randn(s["vocab"], s["hidden"])}
    for i in range(s["layers"]):
        layer = f"model.layers.{i}."
        for name, shape in {
            "input_layernorm": (s["hidden"],),
            "post_attention_layernorm": (s["hidden"],),
            "self_attn.q_proj": (s["hidden"], s["hidden"]),
            "self_attn.k_proj": (kv, s["hidden"]),
            "self_attn.v_proj": (kv, s["hidden"]),
            "self_attn.o_proj": (s["hidden"], s["hidden"]),
            "mlp.gate_proj": (s["intermediate"], s["hidden"]),
            "mlp.up_proj": (s["intermediate"], s["hidden"]),
            "mlp.down_proj": (s["hidden"], s["intermediate"]),
        }.items():
            tensors[f"{layer}{name}.weight"] = torch.randn(*shape)
    tensors["model.norm.weight"] = torch.randn(s["hidden"])
    tensors["lm_head.weight"] = torch.randn(s["vocab"], s["hidden"])
    return tensors


def permuted(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """llama.cpp, convert_hf_to_gguf.py: LlamaModel.permute."""
    return weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def bytes_to_unicode() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


def llama() -> None:
    tensors = hugging_face_tensors()
    save_file(tensors, "llama.safetensors", metadata={"format": "pt"})
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["layers"])
    for parts in ({}, {"split_max_tensors": 8}):
        llama_file(gguf.GGUFWriter("split.gguf" if parts else "llama.gguf", "llama", **parts), tensors, names)


def llama_file(writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor], names: gguf.TensorNameMap) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(SIZES["hidden"])
    writer.add_block_count(SIZES["layers"])
    writer.add_feed_forward_length(SIZES["intermediate"])
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    tokenizer(writer)
    for name, weight in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, SIZES["heads" if "q_proj" in name else "kv_heads"])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    close(writer)


def tokenizer(writer: gguf.GGUFWriter) -> None:
    letters = bytes_to_unicode()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", *letters, "th", "the", "Ġa", "in"]
    kind = gguf.TokenType
    types = [kind.CONTROL] * 3 + [kind.USER_DEFINED] + [kind.NORMAL] * (len(tokens) - 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h", "th e", "Ġ a", "i n"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}


def family(name: str, architecture: str) -> None:
    """../data/family-NAME (llama_dump.py) as llama.cpp's converter stores it; the tokenizer has 60 letters and a merge."""
    folder = f"../data/family-{name}/"
    cfg = json.load(open(folder + "config.json"))
    writer = gguf.GGUFWriter(f"{name}.gguf", architecture)
    writer.add_block_count(cfg["num_hidden_layers"])
    writer.add_context_length(cfg["max_position_embeddings"])
    writer.add_embedding_length(cfg["hidden_size"])
    writer.add_feed_forward_length(cfg["intermediate_size"])
    writer.add_head_count(cfg["num_attention_heads"])
    writer.add_head_count_kv(cfg["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    if "head_dim" in cfg:
        writer.add_key_length(cfg["head_dim"])
    if architecture == "llama" and cfg.get("sliding_window"):
        writer.add_sliding_window(cfg["sliding_window"])
    rope = cfg["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_attn_factors(rope["attention_factor"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([chr(0x21 + i) for i in range(60)] + ['!"'])
    writer.add_token_merges(['! "'])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, tensor in load_file(folder + "model.safetensors").items():
        part = key.rsplit(".", 1)[0]
        prefix = ""
        if part.startswith("model.layers."):
            _, _, layer, part = part.split(".", 3)
            prefix = f"blk.{layer}."
        if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = permuted(tensor, cfg["num_attention_heads" if "q_" in part else "num_key_value_heads"])
        writer.add_tensor(prefix + GGUF_NAMES[part] + "." + key.rsplit(".", 1)[1], tensor.contiguous().numpy())
    close(writer)


def sentencepiece_file() -> None:
    """../sentencepiece/bpe.model as llama.cpp's converter stores it, on a model of one layer; what the package itself makes of texts."""
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_file="../sentencepiece/bpe.model")
    n = sp.get_piece_size()
    writer = gguf.GGUFWriter("sentencepiece.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(4)
    writer.add_feed_forward_length(4)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if sp.id_to_piece(i) in ("[INST]", "world") else 1
    writer.add_tokenizer_model("llama")
    writer.add_token_list([sp.id_to_piece(i) for i in range(n)])
    writer.add_token_scores([sp.get_score(i) for i in range(n)])
    writer.add_token_types([kind(i) for i in range(n)])
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    zeros = lambda *shape: np.full(shape, 0.5, np.float32)
    writer.add_tensor("token_embd.weight", zeros(n, 4))
    writer.add_tensor("output_norm.weight", zeros(4))
    for part in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{part}.weight", zeros(4))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{part}.weight", zeros(4, 4))
    close(writer)
    # Texts in which SentencePiece finds no piece that stands for itself, which tokenizer.json keeps apart.
    texts = [t for t in json.load(open("../tokenizer/texts.json")) if t and "\0" not in t and "world" not in t and "[INST]" not in t and "\u2581" not in t and "<" not in t][:400]
    cases = [[t, [sp.bos_id(), *sp.encode(t)]] for t in texts]
    open("sentencepiece.json", "w").write(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    mixed()
    quants()
    metadata()
    llama()
    print(json.dumps(SIZES))
    for name, architecture in {"biases": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}.items():
        family(name, architecture)
    sentencepiece_file()
