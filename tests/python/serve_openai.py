#!/usr/bin/env python3
"""serve_openai.py TROUPE: `troupe serve` as the openai package sees it: both endpoints, whole and streamed, errors and the key."""
import asyncio
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile

import openai

VOCAB, HIDDEN = 260, 32


def write_model(where):
    """A random Llama over bytes; token 259 ends."""
    rng = 7
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    for name, shape in {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN, HIDDEN),
                        "self_attn.k_proj": (16, HIDDEN), "self_attn.v_proj": (16, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
                        "mlp.gate_proj": (48, HIDDEN), "mlp.up_proj": (48, HIDDEN), "mlp.down_proj": (HIDDEN, 48)}.items():
        shapes[f"model.layers.0.{name}.weight"] = shape
    header, data = {}, b""
    for name, shape in shapes.items():
        values = []
        for _ in range(shape[0] * (shape[1] if len(shape) > 1 else 1)):
            rng = (rng * 6364136223846793005 + 1442695040888963407) % 2**64
            values.append(1.0 if "norm" in name else ((rng >> 40) / 2**24 - 0.5) * 0.5)
        begin = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (where / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
              "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
              "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
              "tie_word_embeddings": False, "eos_token_id": 259, "torch_dtype": "float32"}
    (where / "config.json").write_text(json.dumps(config))
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b if b in printable else 256 + others.index(b)): b for b in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = [{"id": i, "content": f"<{i}>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i in range(256, VOCAB)]
    (where / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": letters, "merges": []}}))
    (where / "chat_template.jinja").write_text(
        "{% for m in messages %}<256>{{ m.role }}: {{ m.content }}{% endfor %}{{ tools | length if tools }}{% if add_generation_prompt %}<257>{% endif %}")


def refused(kind, call, says):
    try:
        call()
    except kind as e:
        assert says in str(e), e
        return e
    raise AssertionError(f"not refused: {says}")


def check_completions(client):
    ask = dict(model="tiny", prompt=["one", "two"], n=2, max_tokens=30, seed=5, logprobs=3, stop=["q"], extra_body={"return_token_ids": True})
    whole = client.completions.create(**ask)
    again = client.completions.create(**ask)
    assert whole.choices == again.choices and [c.index for c in whole.choices] == [0, 1, 2, 3]
    assert whole.usage.prompt_tokens == 6
    assert whole.usage.completion_tokens == sum(len(c.token_ids) for c in whole.choices)
    texts, ids, logprobs, finished = ["", "", "", ""], [[], [], [], []], [[], [], [], []], [None] * 4
    usage = None
    for chunk in client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for c in chunk.choices:
            texts[c.index] += c.text
            ids[c.index] += getattr(c, "token_ids", None) or []
            logprobs[c.index] += c.logprobs.token_logprobs if c.logprobs else []
            finished[c.index] = c.finish_reason
    assert usage == whole.usage
    for c in whole.choices:
        assert c.prompt_token_ids == list(b"one" if c.index < 2 else b"two")
        assert (c.text, c.token_ids, c.logprobs.token_logprobs, c.finish_reason) == (
            texts[c.index], ids[c.index], logprobs[c.index], finished[c.index])
        assert "q" not in c.text and c.logprobs.top_logprobs[0]
    by_ids = client.completions.create(**(ask | {"prompt": list(b"one")}))
    assert [c.token_ids for c in by_ids.choices] == [c.token_ids for c in whole.choices[:2]]


def check_chats(client):
    ask = dict(model="tiny", messages=[{"role": "system", "content": "short"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
               max_completion_tokens=20, temperature=0.5, logprobs=True, top_logprobs=2,
               tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], extra_body={"return_token_ids": True, "top_k": 50})
    whole = client.chat.completions.create(**ask)
    choice = whole.choices[0]
    assert whole.prompt_token_ids == [256, *b"system: short", 256, *b"user: hi1", 257]
    assert len(choice.logprobs.content) == len(choice.token_ids) and len(choice.logprobs.content[0].top_logprobs) == 2
    text, logprobs = "", []
    for chunk in client.chat.completions.create(**ask, seed=whole.seed, stream=True):
        text += chunk.choices[0].delta.content or ""
        logprobs += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert text == choice.message.content and logprobs == choice.logprobs.content


async def check_company(url):
    async with openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=0, timeout=60) as client:
        def ask(seed):
            return client.completions.create(model="tiny", prompt="one", max_tokens=60, seed=seed, logprobs=0,
                                             extra_body={"return_token_ids": True, "ignore_eos": True})
        first = await ask(3)
        answers = await asyncio.gather(*(ask(seed) for seed in range(21)))
    assert answers[3].choices == first.choices and len({tuple(a.choices[0].token_ids) for a in answers}) == 21


def check_errors(client, url):
    bad = refused(openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a", temperature=-1), "temperature")
    assert bad.param == "temperature" and bad.type == "invalid_request_error"
    refused(openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a", extra_body={"topk": 1}), "nearest: top_k")
    refused(openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a" * 200, stream=True), "128")
    refused(openai.NotFoundError, lambda: client.completions.create(model="other", prompt="a"), "other")
    refused(openai.AuthenticationError, lambda: openai.OpenAI(base_url=url, api_key="wrong").models.list(), "API key")
    assert [m.id for m in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").max_model_len == 128


def main(troupe):
    with tempfile.TemporaryDirectory() as name:
        where = pathlib.Path(name)
        write_model(where)
        with subprocess.Popen([troupe, "serve", "--model", name, "--listen", "127.0.0.1:0", "--threads", "1", "--served-model-name", "tiny"],
                              stdout=subprocess.PIPE, text=True, env=os.environ | {"TROUPE_API_KEY": "key"}) as server:
            try:
                url = server.stdout.readline().split()[-1] + "/v1"
                client = openai.OpenAI(base_url=url, api_key="key", max_retries=0, timeout=60)
                check_completions(client)
                check_chats(client)
                asyncio.run(check_company(url))
                check_errors(client, url)
                server.send_signal(signal.SIGTERM)
                assert server.wait(60) == 0
            finally:
                server.kill()


if __name__ == "__main__":
    main(sys.argv[1])
