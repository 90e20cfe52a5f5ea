"""The Custom Split LLaMA for Transformers: the first layers of one Llama, an adapter, the last layers of another.

Written beside the weights by troupe; AutoModelFor*.from_pretrained(directory, trust_remote_code=True) uses it.
"""
import inspect
import os

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

MASK_PARAMETERS = inspect.signature(create_causal_mask).parameters


def layer_plan(name):
    """How tensor-parallel ranks share one half's layers."""
    linears = {"self_attn.q_proj": "colwise", "self_attn.k_proj": "colwise", "self_attn.v_proj": "colwise", "self_attn.o_proj": "rowwise",
               "mlp.gate_proj": "colwise", "mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}
    return {f"{name}.*.{linear}": style for linear, style in linears.items()}


def half_config(config, path, name):
    """A half's configuration: given, or read from its model's directory."""
    if isinstance(config, LlamaConfig):
        return config
    if config is not None:
        return LlamaConfig(**config)
    if not path:
        raise ValueError(f"{name} is missing, and so is the path of its model")
    return LlamaConfig.from_pretrained(os.fspath(path))


class CustomSplitLLamaConfig(PreTrainedConfig):
    model_type = "custom_split_llama"
    sub_configs = {"config_8b": LlamaConfig, "config_70b": LlamaConfig}
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {**layer_plan("layers_8b"), "adapter.linear1": "colwise", "adapter.linear2": "rowwise", **layer_plan("layers_70b")}

    def __init__(self, config_8b=None, config_70b=None, num_layers_8=1, num_layers_70=1, vocab_size=None, mlp=False, path8b=None, path70b=None,
                 adapter_path=None, adapter_init="identity", **kwargs):
        if config_8b is None and config_70b is None and not path8b and not path70b:
            config_8b = config_70b = LlamaConfig()  # Transformers makes a default one to compare with
        first, second = half_config(config_8b, path8b, "config_8b"), half_config(config_70b, path70b, "config_70b")
        vocab_size = first.vocab_size if vocab_size is None else vocab_size
        for name, half, taken in ("config_8b", first, num_layers_8), ("config_70b", second, num_layers_70):
            if half.vocab_size != vocab_size:
                raise ValueError(f"vocab_size {vocab_size}, and {name}.vocab_size is {half.vocab_size}; both halves must have one vocabulary")
            if not 1 <= taken <= half.num_hidden_layers:
                raise ValueError(f"{taken} of the {half.num_hidden_layers} layers that {name} has")
        self.config_8b, self.config_70b = first, second
        self.num_layers_8, self.num_layers_70 = num_layers_8, num_layers_70
        self.vocab_size, self.mlp = vocab_size, mlp
        self.path8b, self.path70b = path8b, path70b
        self.adapter_path, self.adapter_init = adapter_path, adapter_init
        # What generic code asks of a configuration: the width that heads see, and layers as the cache counts them.
        self.hidden_size, self.num_hidden_layers = second.hidden_size, num_layers_8 + num_layers_70
        for name in "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps":
            setattr(self, name, getattr(second, name))
        for name in "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps":
            kwargs.pop(name, None)
        self.max_position_embeddings = kwargs.pop("max_position_embeddings", min(first.max_position_embeddings, second.max_position_embeddings))
        self.initializer_range = kwargs.pop("initializer_range", 0.02)
        self.use_cache = kwargs.pop("use_cache", True)
        self.bos_token_id = kwargs.pop("bos_token_id", first.bos_token_id)
        self.eos_token_id = kwargs.pop("eos_token_id", first.eos_token_id)
        self.pad_token_id = kwargs.pop("pad_token_id", first.pad_token_id)
        if kwargs.pop("tie_word_embeddings", False):
            raise ValueError("tie_word_embeddings = true: a split model's embedding and head are of two models")
        self.tie_word_embeddings = False
        super().__init__(**kwargs)


class Adapter(nn.Module):
    """linear1 [h8 -> h70], ReLU with `mlp`, linear2 [h70 -> h70]."""

    def __init__(self, config):
        super().__init__()
        self.linear1 = nn.Linear(config.config_8b.hidden_size, config.config_70b.hidden_size, bias=False)
        self.linear2 = nn.Linear(config.config_70b.hidden_size, config.config_70b.hidden_size, bias=False)
        self.mlp = config.mlp

    def forward(self, hidden_states):
        if hidden_states.shape[-1] != self.linear1.in_features:
            raise ValueError(f"the adapter reads hidden states of width {self.linear1.in_features} (config_8b.hidden_size), got {hidden_states.shape[-1]}")
        hidden_states = self.linear1(hidden_states)
        return self.linear2(nn.functional.relu(hidden_states) if self.mlp else hidden_states)


class CustomSplitLLamaPreTrainedModel(PreTrainedModel):
    config_class = CustomSplitLLamaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": LlamaDecoderLayer, "attentions": LlamaAttention}


class CustomSplitLLamaModel(CustomSplitLLamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        first, second, n = config.config_8b, config.config_70b, config.num_layers_8
        # Each half's layers look at their own configuration, and all at one attention implementation.
        first._attn_implementation = second._attn_implementation = config._attn_implementation
        self.embed_tokens = nn.Embedding(config.vocab_size, first.hidden_size)
        self.layers_8b = nn.ModuleList([LlamaDecoderLayer(first, i) for i in range(n)])
        self.adapter = Adapter(config)
        self.layers_70b = nn.ModuleList([LlamaDecoderLayer(second, n + j) for j in range(config.num_layers_70)])
        self.norm = LlamaRMSNorm(second.hidden_size, eps=second.rms_norm_eps)
        self.rotary_8b, self.rotary_70b = LlamaRotaryEmbedding(first), LlamaRotaryEmbedding(second)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    @capture_outputs
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None, **kwargs):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
            if attention_mask is not None and attention_mask.dim() == 2:  # padding has no place in the count
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1]:]
        wanted = dict(config=self.config, inputs_embeds=inputs_embeds, input_embeds=inputs_embeds, attention_mask=attention_mask,
                      past_key_values=past_key_values, position_ids=position_ids, cache_position=None)
        mask = create_causal_mask(**{name: value for name, value in wanted.items() if name in MASK_PARAMETERS})
        hidden_states = self.half(self.layers_8b, self.rotary_8b, inputs_embeds, mask, position_ids, past_key_values, use_cache, kwargs)
        hidden_states = self.adapter(hidden_states)
        hidden_states = self.half(self.layers_70b, self.rotary_70b, hidden_states, mask, position_ids, past_key_values, use_cache, kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def half(self, layers, rotary, hidden_states, mask, position_ids, past_key_values, use_cache, kwargs):
        position_embeddings = rotary(hidden_states, position_ids=position_ids)
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask=mask, position_embeddings=position_embeddings, position_ids=position_ids,
                                  past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        return hidden_states


class CustomSplitLLamaWithHead(CustomSplitLLamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = CustomSplitLLamaModel(config)
        self._init_head(config)
        self.post_init()

    def _init_head(self, config):
        self.score = nn.Linear(config.config_70b.hidden_size, config.num_labels, bias=self.score_has_bias)

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value


class CustomSplitLLamaForCausalLM(CustomSplitLLamaWithHead, GenerationMixin):
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def _init_head(self, config):
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.config_70b.hidden_size, config.vocab_size, bias=False)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None, use_cache=None,
                logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
                             inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states,
                                      attentions=outputs.attentions)


class CustomSplitLLamaForTokenClassification(CustomSplitLLamaWithHead):
    """The value model: one number a token."""

    score_has_bias = True

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None, use_cache=None,
                **kwargs):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
                             inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        logits = self.score(outputs.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


class CustomSplitLLamaForSequenceClassification(CustomSplitLLamaWithHead):
    """The reward model: one number a sequence, taken at its last token."""

    score_has_bias = False

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None, use_cache=None,
                **kwargs):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
                             inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        logits = self.score(outputs.last_hidden_state)
        pooled = logits[torch.arange(logits.shape[0], device=logits.device), self.last_tokens(logits, input_ids, attention_mask)]
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, pooled_logits=pooled, config=self.config)
        return SequenceClassifierOutputWithPast(loss=loss, logits=pooled, past_key_values=outputs.past_key_values,
                                                hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def last_tokens(self, logits, input_ids, attention_mask):
        """Index of each row's last token: by the mask, else by pad_token_id."""
        if attention_mask is not None and attention_mask.dim() == 2:
            real = attention_mask != 0
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        elif logits.shape[0] == 1:
            return torch.tensor([logits.shape[1] - 1], device=logits.device)
        else:
            raise ValueError("several rows need an attention_mask or a pad_token_id to find their last tokens")
        places = torch.arange(logits.shape[1], device=logits.device)
        return (places * real.to(logits.device)).argmax(-1)
