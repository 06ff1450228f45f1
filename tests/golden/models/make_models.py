#!/usr/bin/env python3
"""Makes the golden checkpoints of this folder, and rope.json.

Each sub-folder is a tiny Hugging Face model with RANDOM weights (config.json, generation_config.json,
model.safetensors or shards) plus what `transformers` computes from it:

  golden.json         prompt ids; 16 greedily generated ids with, for each, the top-2 logit margin (a step
                      of a small margin may differ in another arithmetic; the eos id does not stop it);
                      the rms difference between logits computed in bf16 and in fp32; the configuration as
                      transformers understands it; for every tensor its dtype, its shape and FNV-1a
                      hashes of its bytes, as stored and rounded to bf16
  golden.safetensors  logits [16, vocab] f32: after each of the last 16 prompt tokens
                      logprobs [prompt - 1] f32: natural log-probability of token i + 1 after i
                      greedy_logits [8, vocab] f32: after each of the first 8 generated ids

The reference rounds all weights to bf16 (to nearest even, as the engine does), and computes in fp32 with
eager attention and without a KV cache. Weights are scaled so that logits have a standard deviation near 2
and attention is far from uniform; the prompt is the one, of 24, whose closest greedy decision is the
widest and whose continuation has at least 8 different ids; of models with experts, where no router
is close to another choice: least of all while it is continued, then anywhere.

rope.json holds inverse frequencies and attention scalings of many RoPE configurations.

To make them again (bit-exact with the same versions only; made with torch 2.15, transformers 5.23):

  pip install torch transformers safetensors compressed-tensors
  python tests/golden/models/make_models.py [--only NAME]
"""

import argparse
import json
import math
import pathlib
import shutil

import integer_codes
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_TOKENS = 96
LONG_PROMPT_TOKENS = 448  # of dual chunk attention: several chunks
GREEDY_TOKENS = 16
PROMPTS_TRIED = 24
PROMPTS_TRIED_WITH_EXPERTS = 300
VOCAB = 256

SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)


class EvictionHeadAttention(LlamaAttention):
    """Llama's with an eviction head (NOSA, arXiv 2510.13602): every token says how much it will be
    attended, s = A softplus(delta v), v of all KV heads, and attention is softmax(q k / sqrt(d) + s)."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        n_kv = config.num_key_value_heads
        self.delta = torch.nn.Linear(n_kv * self.head_dim, n_kv, bias=False)
        self.A = torch.nn.Parameter(torch.ones(n_kv))

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        batch, n, _ = hidden_states.shape
        q, k, v = (p(hidden_states) for p in (self.q_proj, self.k_proj, self.v_proj))
        bias = self.A * torch.nn.functional.softplus(self.delta(v))  # [batch, n, KV heads]
        q, k, v = (x.view(batch, n, -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        group = self.num_key_value_groups
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(2, 3) * self.scaling
        scores = scores + bias.transpose(1, 2).repeat_interleave(group, 1)[:, :, None, :]
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).float().softmax(-1).to(q.dtype)
        out = (weights @ v).transpose(1, 2).reshape(batch, n, -1)
        return self.o_proj(out), weights


class EvictionHeadForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = EvictionHeadAttention(config, index)


def dual_chunk_attention(base):
    """`base` (Qwen2's or Qwen3's attention) as dual chunk attention: arXiv 2402.17463, sections 3.1 to 3.3.

    With chunks of s = chunk_size - local_size keys, key j is at j mod s, and query i at
      i mod s                           for keys of its own chunk,
      min(i mod s + s, chunk_size)      for those of the chunk before,
      chunk_size                        for those of all chunks before that.
    Queries and keys are scaled by 0.1 ln(n / original_max_position_embeddings) + 1 beyond that length, as
    vLLM did. n is the prompt's length for its queries, and the length so far for those behind it, both up to
    a multiple of 256; keys are scaled as the query is that looks at them."""

    class DualChunkAttention(base):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
            batch, n, _ = hidden_states.shape
            q, k, v = (p(hidden_states).view(batch, n, -1, self.head_dim)
                       for p in (self.q_proj, self.k_proj, self.v_proj))
            if hasattr(self, "q_norm"):
                q, k = self.q_norm(q), self.k_norm(k)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            group = self.num_key_value_groups
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

            dual = self.config.dual_chunk_attention_config
            chunk, size = dual["chunk_size"], dual["chunk_size"] - dual["local_size"]
            at = torch.arange(n)
            keys = self.turned(k, at % size)
            intra = self.turned(q, at % size) @ keys.transpose(2, 3)
            succ = self.turned(q, (at % size + size).clamp(max=chunk)) @ keys.transpose(2, 3)
            inter = self.turned(q, torch.full_like(at, chunk)) @ keys.transpose(2, 3)
            apart = (at // size)[:, None] - (at // size)[None, :]
            scores = torch.where(apart == 0, intra, torch.where(apart == 1, succ, inter))
            length = at.clamp(min=LONG_PROMPT_TOKENS - 1) + 1
            length = (length + 255) // 256 * 256
            original = dual["original_max_position_embeddings"]
            if original > 0:
                factor = (0.1 * torch.log(length / original) + 1).clamp(min=1)
                scores = scores * (factor * factor)[:, None].to(scores.dtype)
            hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
            scores = (scores * self.scaling).masked_fill(hidden, float("-inf"))
            weights = scores.float().softmax(-1).to(q.dtype)
            out = (weights @ v).transpose(1, 2).reshape(batch, n, -1)
            return self.o_proj(out), weights

        def turned(self, x, positions):
            theta = self.config.rope_parameters["rope_theta"]
            pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
            angles = positions[:, None].float() * theta**-pairs
            cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
            low, high = x.chunk(2, -1)
            return x * cos + torch.cat([-high, low], -1) * sin

    return DualChunkAttention


def with_dual_chunks(model_class, attention_class):
    class DualChunkForCausalLM(model_class):
        def __init__(self, config):
            super().__init__(config)
            for index, layer in enumerate(self.model.layers):
                layer.self_attn = dual_chunk_attention(attention_class)(config, index)

    return DualChunkForCausalLM


LLAMA3 = dict(
    rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=128)


# In which codes are kept (integer_codes.py).
WIDE = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2)


def llama(**changes):
    return LlamaForCausalLM, LlamaConfig(**{**SMALL, **changes})


def mistral(**changes):
    return MistralForCausalLM, MistralConfig(**{**SMALL, **changes})


def qwen2(**changes):
    return Qwen2ForCausalLM, Qwen2Config(**{**SMALL, **changes})


def qwen3(**changes):
    return Qwen3ForCausalLM, Qwen3Config(**{**SMALL, **changes})


def mixtral(**changes):
    return MixtralForCausalLM, MixtralConfig(**{**SMALL, **changes})


def qwen3_moe(**changes):
    return Qwen3MoeForCausalLM, Qwen3MoeConfig(**{**SMALL, **changes})


# Phi-3 has no head_dim: it is hidden_size / num_attention_heads.
def phi3(**changes):
    small = {key: value for key, value in SMALL.items() if key != "head_dim"}
    return Phi3ForCausalLM, Phi3Config(**{**small, "hidden_size": 128, **changes})


def longrope(rotary_dim, **changes):
    n = rotary_dim // 2
    return dict(rope_type="longrope", rope_theta=10000.0,
                short_factor=[1.0 + 0.01 * i for i in range(n)],
                long_factor=[1.0 + 0.25 * i for i in range(n)], **changes)


def glm(**changes):
    return GlmForCausalLM, GlmConfig(**{**SMALL, "partial_rotary_factor": 0.5, **changes})


def glm4(**changes):
    return Glm4ForCausalLM, Glm4Config(**{**SMALL, "partial_rotary_factor": 0.5, **changes})


# Its published checkpoints are Llama's plus the head's tensors.
def as_llama(config):
    config["architectures"] = ["LlamaForCausalLM"]


# What some older exporter would have written instead of rope_parameters.
def old_style_rope(config):
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}


# As microsoft's files have it.
def old_style_phi3(config):
    old_style_rope(config)
    config["rope_scaling"].pop("original_max_position_embeddings", None)


def as_qwen2(config):
    config["architectures"] = ["Qwen2ForCausalLM"]


def as_qwen3(config):
    config["architectures"] = ["Qwen3ForCausalLM"]


# Its files have the number of experts under the name of its own class.
def as_published_qwen3_moe(config):
    old_style_rope(config)
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")


def without_head_dim(config):
    old_style_rope(config)
    del config["head_dim"]


# name: (model, dtype, options); `edit` rewrites config.json before the reference reads it.
MODELS = {
    "llama": (llama(num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5), "bf16", {}),
    "llama_tied": (llama(tie_word_embeddings=True), "bf16", {"edit": old_style_rope}),
    "llama_head128": (llama(head_dim=128, tie_word_embeddings=True), "bf16", {}),
    "llama_head96": (llama(head_dim=96, tie_word_embeddings=True), "bf16", {}),
    "llama_rope_llama3": (llama(rope_parameters=LLAMA3, tie_word_embeddings=True), "bf16", {}),
    "llama_rope_linear": (
        llama(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
              tie_word_embeddings=True), "bf16", {"edit": old_style_rope}),
    "llama_rope_yarn": (llama(rope_parameters=YARN, tie_word_embeddings=True), "bf16", {}),
    "llama_biases": (llama(attention_bias=True, mlp_bias=True), "bf16", {}),
    "llama_f16": (llama(tie_word_embeddings=True), "f16", {}),
    "llama_f32": (llama(intermediate_size=32, tie_word_embeddings=True), "f32", {}),
    "llama_sharded": (
        llama(hidden_size=128, intermediate_size=32, tie_word_embeddings=True), "bf16",
        {"edit": without_head_dim, "max_shard_size": "80KB"}),
    "mistral_window": (
        mistral(sliding_window=24, num_attention_heads=4, num_key_value_heads=1,
                tie_word_embeddings=True), "bf16", {}),
    "qwen2": (qwen2(eos_token_id=[2, 7]), "bf16", {"sampling": True}),
    "qwen2_window": (
        qwen2(use_sliding_window=True, sliding_window=32, max_window_layers=1, num_hidden_layers=3,
              tie_word_embeddings=True), "bf16", {}),
    "qwen3": (
        qwen3(num_attention_heads=4, num_key_value_heads=2,
              tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
        "bf16", {}),
    "llama_eviction_head": (
        (EvictionHeadForCausalLM,
         LlamaConfig(**{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "tie_word_embeddings": True})), "bf16", {"edit": as_llama}),
    "qwen2_dual_chunk": (
        (with_dual_chunks(Qwen2ForCausalLM, Qwen2Attention),
         Qwen2Config(**{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "dual_chunk_attention_config": {
                            "chunk_size": 96, "local_size": 32,
                            "original_max_position_embeddings": 128}})),
        "bf16", {"edit": as_qwen2, "prompt_tokens": LONG_PROMPT_TOKENS}),
    "qwen3_dual_chunk": (
        (with_dual_chunks(Qwen3ForCausalLM, Qwen3Attention),
         Qwen3Config(**{**SMALL, "tie_word_embeddings": True,
                        "dual_chunk_attention_config": {
                            "chunk_size": 72, "local_size": 8,
                            "original_max_position_embeddings": 0}})),
        "bf16", {"edit": as_qwen3, "prompt_tokens": LONG_PROMPT_TOKENS}),
    # The factors of long contexts, from the first token on: the prompt is longer than the original one.
    "phi3_long": (
        phi3(hidden_size=192, intermediate_size=32, num_key_value_heads=2, tie_word_embeddings=True,
             rope_parameters=longrope(96), original_max_position_embeddings=64), "bf16",
        {"edit": old_style_phi3}),
    # Those of short ones, three quarters of the channels, and an attention factor for these only.
    "phi3_partial": (
        phi3(rope_parameters=longrope(48, partial_rotary_factor=0.75, attention_factor=1.5), intermediate_size=32,
             partial_rotary_factor=0.75, tie_word_embeddings=True,
             original_max_position_embeddings=256), "bf16", {}),
    "phi3_window": (phi3(sliding_window=24, intermediate_size=32), "bf16", {}),
    "glm": (glm(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True), "bf16", {}),
    "glm4": (glm4(num_attention_heads=4, tie_word_embeddings=True), "f32", {"edit": old_style_rope}),
    "glm4_yarn": (
        glm4(tie_word_embeddings=True, rope_parameters={**YARN, "partial_rotary_factor": 0.5}),
        "bf16", {}),
    # 8-bit floats: a scale for each block (the last ones smaller), row, tensor. Decoded where a matrix or a block is no
    # multiple of 128 or of 32 columns: all of the first one, some of the third.
    "llama_fp8": (llama(num_attention_heads=4, num_key_value_heads=2), "bf16", {"fp8": (32, 48)}),
    "glm4_fp8": (glm4(**WIDE, tie_word_embeddings=True), "bf16", {"fp8": "channel"}),
    "phi3_fp8": (phi3(intermediate_size=32, num_key_value_heads=1, tie_word_embeddings=True), "bf16",
                 {"fp8": "tensor"}),
    # Mixtures of experts: weights divided by their sum, or not; a layer without experts.
    "mixtral": (
        mixtral(num_local_experts=4, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2,
                tie_word_embeddings=True), "bf16", {"edit": old_style_rope}),
    "qwen3_moe": (
        qwen3_moe(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True,
                  num_hidden_layers=3, mlp_only_layers=[1], num_key_value_heads=2,
                  tie_word_embeddings=True), "bf16", {"edit": as_published_qwen3_moe}),
    "qwen3_moe_sparse_step": (
        qwen3_moe(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=False,
                  decoder_sparse_step=2, attention_bias=True), "bf16", {}),
    "qwen3_moe_fp8": (
        qwen3_moe(**WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, norm_topk_prob=True,
                  num_key_value_heads=1, tie_word_embeddings=True), "bf16",
        {"fp8": (48, 64), "fp8_ignore": ["model.layers.1.mlp.experts.2.up_proj.weight"]}),
    # Integers of four and eight bits; matrices of 128 columns are kept as codes.
    "llama_gptq": (llama(**WIDE), "f16", {"integers": dict(method="gptq", bits=4, group=32, symmetric=False)}),
    "llama_gptq_act_order": (
        llama(), "f16", {"integers": dict(method="gptq", bits=4, group=16, symmetric=True, act_order=True)}),
    "qwen2_gptq_int8": (
        qwen2(**WIDE, tie_word_embeddings=True), "bf16",
        {"integers": dict(method="gptq_v2", bits=8, group=0, symmetric=False)}),
    "mistral_awq": (mistral(**WIDE, sliding_window=None), "f16", {"integers": dict(method="awq", bits=4, group=64, symmetric=False)}),
    "qwen3_w4a16": (
        qwen3(**WIDE, tie_word_embeddings=True), "bf16",
        {"integers": dict(method="packed", bits=4, group=32, symmetric=True,
                          ignore=["model.layers.0.self_attn.o_proj"])}),
    "phi3_w4a16": (
        phi3(**WIDE, tie_word_embeddings=True), "bf16",
        {"integers": dict(method="packed", bits=4, group=128, symmetric=False)}),
    "glm4_w8a8": (
        glm4(**WIDE, tie_word_embeddings=True), "bf16",
        {"integers": dict(method="plain", bits=8, group=0, symmetric=False)}),
    "qwen3_moe_w4a16": (
        qwen3_moe(**WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, norm_topk_prob=True,
                  num_key_value_heads=1, tie_word_embeddings=True), "bf16",
        {"integers": dict(method="packed", bits=4, group=64, symmetric=True,
                          ignore=["model.layers.1.mlp.experts.2.up_proj"])}),
    # As Qwen3's own checkpoints of 8-bit floats are.
    "qwen3_fp8": (
        qwen3(hidden_size=256, intermediate_size=256, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
              tie_word_embeddings=True), "bf16", {"fp8": (128, 128)}),
}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32,
          "f8_e4m3": torch.float8_e4m3fn, "i8": torch.int8, "i32": torch.int32, "i64": torch.int64}


def randomise(model, seed):
    """Fills every parameter so that no part of the network can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter.shape[-1]
        if name.endswith(".A"):
            value = 1.0 + 0.5 * noise
        elif "norm" in name:
            value = 1.0 + 0.25 * noise
        elif name.endswith("k_proj.bias"):
            # Large and with a mean, as in Qwen2: dominates the spectrum of the keys.
            value = 2.5 * noise + 1.0 if config.model_type == "qwen2" else 0.5 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "q_proj" in name or "k_proj" in name or "qkv_proj" in name:
            value = noise * 1.5 / math.sqrt(fan_in)
        elif "embed_tokens" in name or "lm_head" in name:
            value = noise * 2.0 / math.sqrt(fan_in)
        elif "o_proj" in name:
            value = noise * 2.0 / math.sqrt(fan_in)
        else:
            value = noise * 1.4 / math.sqrt(fan_in)
        parameter.data.copy_(value)


def blocks_of(rows, columns, scheme):
    """Rows and columns that share a scale."""
    return {"channel": (1, columns), "tensor": (rows, columns)}.get(scheme, scheme)


def as_fp8(value, scheme):
    """Codes, and scales [blocks of rows, blocks of columns]; their product is close to the value."""
    rows, columns = value.shape
    block_rows, block_columns = blocks_of(rows, columns, scheme)
    scales = torch.empty(-(-rows // block_rows), -(-columns // block_columns))
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * block_rows, (i + 1) * block_rows),
                    slice(j * block_columns, (j + 1) * block_columns))
            scales[i, j] = value[part].float().abs().max() / 448
            codes[part] = (value[part].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def from_fp8(codes, scales, scheme):
    block_rows, block_columns = blocks_of(*codes.shape, scheme)
    wide = scales.repeat_interleave(block_rows, 0).repeat_interleave(block_columns, 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


def is_quantised(name):
    return name.endswith("_proj.weight")


def quantised_matrices(model):
    """Under the names that a checkpoint has them by; transformers keeps those of all experts as one."""
    for name, parameter in model.named_parameters():
        if is_quantised(name):
            yield name, parameter.data
        elif name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stem, kind = name.rsplit(".", 1)
            for expert, matrix in enumerate(parameter.data):
                parts = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
                for part, rows in zip(parts, matrix.chunk(len(parts))):
                    yield f"{stem}.{expert}.{part}.weight", rows


def round_to_fp8(model, scheme, ignore):
    """What is left of the weights; returns the tensors that say so."""
    tensors = {}
    for name, matrix in quantised_matrices(model):
        if name in ignore:
            tensors[name] = matrix.to(torch.bfloat16)
            continue
        codes, scales = as_fp8(matrix, scheme)
        matrix.copy_(from_fp8(codes, scales, scheme))
        suffix = "_scale" if isinstance(scheme, str) else "_scale_inv"
        tensors[name] = codes
        tensors[name + suffix] = scales.flatten() if scheme == "tensor" else scales
        if scheme == "tensor":  # of activations and of the KV cache, of no use to bf16
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor([0.5])
        if "o_proj" in name and scheme == "tensor":
            tensors[name.replace("o_proj.weight", "k_scale")] = torch.tensor([0.25])
            tensors[name.replace("o_proj.weight", "v_scale")] = torch.tensor([0.25])
    return tensors


def fp8_config(scheme):
    if isinstance(scheme, str):
        weights = {"num_bits": 8, "type": "float", "strategy": scheme, "symmetric": True}
        return {
            "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    return {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(scheme)}


def write_quantised(folder, tensors, quantization_config):
    """Puts them in the place of those of the reference."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        rest = {name: file.get_tensor(name) for name in file.keys() if not is_quantised(name)}
    save_file({**rest, **tensors}, path, metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = quantization_config
    path.write_text(json.dumps(config, indent=2) + "\n")


def round_to_integers(model, scheme, seed):
    """What is left of the weights; returns the tensors that say so."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, matrix in quantised_matrices(model):
        module = name.removesuffix(".weight")
        if module in scheme.get("ignore", []):
            tensors[name] = matrix.to(torch.bfloat16)
            continue
        stored, values = integer_codes.tensors_of(module, matrix, scheme, generator)
        matrix.copy_(values)
        tensors.update(stored)
    # Some tools write a bias of zeros where there is none.
    own = {name for name, _ in model.named_parameters()}
    for name in [name for name, tensor in tensors.items() if tensor is None]:
        module = name.removesuffix(".bias")
        tensors[name] = torch.zeros(tensors[module + ".scales"].shape[1], dtype=torch.float16)
        if name in own:
            del tensors[name]
    return tensors


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def raw_bytes(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def describe_tensors(folder):
    result = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                result[name] = {
                    "dtype": {v: k for k, v in DTYPES.items()}[tensor.dtype],
                    "shape": list(tensor.shape),
                    "hash": fnv1a(raw_bytes(tensor)),
                }
                if tensor.dtype.is_floating_point:
                    result[name]["hash_bf16"] = fnv1a(raw_bytes(tensor.to(torch.bfloat16)))
    return result


def describe_experts(model):
    mlps = [layer.mlp for layer in model.model.layers]
    of_experts = [mlp for mlp in mlps if hasattr(mlp, "experts")]
    if not of_experts:
        return {}
    experts, router = of_experts[0].experts, of_experts[0].gate
    return {"experts": {
        "n": experts.num_experts, "n_chosen": router.top_k, "intermediate": experts.intermediate_dim,
        "normalise": getattr(router, "norm_topk_prob", True),
        "layers": [hasattr(mlp, "experts") for mlp in mlps]}}


def describe_config(model):
    """The fields of ModelConfig, read from the transformers model itself rather than from its file."""
    config = model.config
    attention = model.model.layers[0].self_attn
    mlp = model.model.layers[0].mlp
    fused_qkv = hasattr(attention, "qkv_proj")
    q_proj = attention.qkv_proj if fused_qkv else attention.q_proj
    fused_mlp = hasattr(mlp, "gate_up_proj")
    has_experts = hasattr(mlp, "experts")
    gate = None if has_experts else mlp.gate_up_proj if fused_mlp else mlp.gate_proj
    if config.model_type in ("mistral", "mixtral", "phi3"):
        windows = [config.sliding_window or 0] * config.num_hidden_layers
    else:
        windows = [getattr(layer.self_attn, "sliding_window", None) or 0
                   for layer in model.model.layers]
    rotary = model.model.rotary_emb
    eos = config.eos_token_id
    return {
        "architecture": config.architectures[0],
        "n_layers": len(model.model.layers),
        "hidden": config.hidden_size,
        "intermediate": (config.intermediate_size if has_experts
                         else gate.out_features // (2 if fused_mlp else 1)),
        **describe_experts(model),
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": attention.head_dim,
        "vocab_size": config.vocab_size,
        "rms_eps": config.rms_norm_eps,
        "rope_type": rotary.rope_type,
        "rope_theta": config.rope_parameters["rope_theta"],
        "inv_freq": [float(x) for x in rotary.inv_freq],
        "attention_scaling": float(rotary.attention_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": windows,
        "qkv_bias": q_proj.bias is not None,
        "o_bias": attention.o_proj.bias is not None,
        "mlp_bias": gate is not None and gate.bias is not None,
        "qk_norm": hasattr(attention, "q_norm"),
        "eviction_head": hasattr(attention, "delta"),
        **({"dual_chunk": config.dual_chunk_attention_config}
           if hasattr(config, "dual_chunk_attention_config") else {}),
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": eos if isinstance(eos, list) else [eos],
    }


@torch.no_grad()
def greedy(model, prompt):
    """Prompt logits [n, vocab], generated ids, the logits they came from, and their top-2 margins."""
    prompt_logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
    ids, rows, margins = list(prompt), [], []
    row = prompt_logits[-1]
    for _ in range(GREEDY_TOKENS):
        top = torch.topk(row, 2)
        rows.append(row)
        margins.append(float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
        row = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return prompt_logits, ids[len(prompt):], torch.stack(rows), margins


@torch.no_grad()
def router_margin(model, ids, first):
    """How far the last expert that is chosen is from the first that is not, at the closest, in logits of the
    tokens from `first` on: nearer than the noise of another arithmetic it may be another expert's turn."""
    margins = []

    def look(router, inputs, outputs):
        logits = outputs[0].float()[first:]
        if router.top_k < logits.shape[-1]:
            top = torch.topk(logits, router.top_k + 1).values
            margins.append(float((top[:, -2] - top[:, -1]).min()))

    routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(look) for router in routers]
    model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return min(margins, default=math.inf)


def make(name, seed):
    (model_class, config), dtype, options = MODELS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed)
    model = model_class(config)
    randomise(model, seed)
    fp8 = round_to_fp8(model, options["fp8"], options.get("fp8_ignore", [])) if "fp8" in options else None
    integers = round_to_integers(model, options["integers"], seed) if "integers" in options else None
    if options.get("sampling"):
        model.generation_config.update(
            do_sample=True, temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.05,
            bos_token_id=1, eos_token_id=[2, 9])
    # Of codes the values would be rounded once more in f16.
    model.to(torch.bfloat16 if integers else DTYPES[dtype]).save_pretrained(
        folder, max_shard_size=options.get("max_shard_size", "5GB"))
    if "edit" in options:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        options["edit"](content)
        path.write_text(json.dumps(content, indent=2) + "\n")

    loader = AutoModelForCausalLM if model_class.__module__.startswith("transformers") else model_class
    reference = loader.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager")
    # The frequencies must have been computed in fp32, whatever the weights' dtype.
    assert reference.model.rotary_emb.inv_freq.dtype == torch.float32
    reference.to(torch.float32).eval()

    best = None
    n_prompt = options.get("prompt_tokens", PROMPT_TOKENS)
    has_experts = "experts" in describe_config(reference)
    for attempt in range(PROMPTS_TRIED_WITH_EXPERTS if has_experts else PROMPTS_TRIED):
        generator = torch.Generator().manual_seed(1000 * seed + attempt)
        prompt = [1] + torch.randint(3, VOCAB, (n_prompt - 1,), generator=generator).tolist()
        candidate = (prompt, *greedy(reference, prompt))
        # A continuation that repeats itself tests little, whatever its margins.
        candidate = (len(set(candidate[2])) >= 8,
                     *(min(router_margin(reference, prompt + candidate[2], first), enough)
                       for first, enough in ((n_prompt - 1, 0.05), (0, 0.02))),
                     min(candidate[4]), *candidate)
        if best is None or candidate[:4] > best[:4]:
            best = candidate
    prompt, logits, generated, greedy_logits, margins = best[4:]
    # How far transformers' own bf16 run is from fp32: the yardstick for an engine that keeps
    # activations in bf16.
    lowered = loader.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    with torch.no_grad():
        lowered_logits = lowered(torch.tensor([prompt]), use_cache=False).logits[0].float()
    bf16_error = (lowered_logits - logits).square().mean().sqrt().item()
    logprobs = torch.log_softmax(logits.double(), -1)[:-1].gather(
        1, torch.tensor(prompt[1:])[:, None])[:, 0]

    save_file(
        {"logits": logits[-16:].contiguous(), "logprobs": logprobs.float().contiguous(),
         "greedy_logits": greedy_logits[1:9].contiguous()},
        folder / "golden.safetensors")
    if fp8:
        write_quantised(folder, fp8, fp8_config(options["fp8"]))
    if integers:
        write_quantised(folder, integers, integer_codes.quantization_config(options["integers"]))
    golden = {
        "prompt": prompt,
        "greedy": generated,
        "margins": [round(m, 5) for m in margins],
        "bf16_logit_error": round(bf16_error, 6),
        "config": describe_config(reference),
        "tensors": describe_tensors(folder),
    }
    lines = ["  %s: %s" % (json.dumps(k), json.dumps(v)) for k, v in golden.items()]
    (folder / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{name:18} {size / 1024:6.0f} KiB  logits std {logits.std():.2f}  "
          f"smallest margin {min(margins):.3f}  distinct greedy {len(set(generated))}")


def rope_cases():
    def case(name, head_dim, rope, **config):
        return name, head_dim, {"rope_parameters": rope, **config}

    llama31 = {**LLAMA3, "original_max_position_embeddings": 8192}
    yarn = {**YARN, "rope_theta": 1e6, "original_max_position_embeddings": 32768}
    return [
        case("default", 64, dict(rope_type="default", rope_theta=10000.0)),
        case("default_1e6_head128", 128, dict(rope_type="default", rope_theta=1e6)),
        case("linear", 64, dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
        case("llama3.1", 128, llama31, max_position_embeddings=131072),
        case("llama3.2_factor32", 64, {**llama31, "factor": 32.0}, max_position_embeddings=131072),
        case("llama3_original_from_max", 64,
             {k: v for k, v in llama31.items() if k != "original_max_position_embeddings"},
             max_position_embeddings=4096),
        case("yarn", 128, yarn, max_position_embeddings=131072),
        case("yarn_short_context", 64, YARN, max_position_embeddings=512),
        case("yarn_factor_null", 64, {**YARN, "factor": None}, max_position_embeddings=1024),
        case("yarn_attention_factor", 64, {**YARN, "attention_factor": 1.25}),
        case("yarn_mscale", 64, {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}),
        case("yarn_mscale_only", 64, {**YARN, "mscale": 0.707}),
        case("yarn_no_truncate", 64, {**YARN, "truncate": False}),
        case("yarn_truncate_null", 64, {**YARN, "truncate": None}),
        case("yarn_betas", 96, {**YARN, "beta_fast": 16, "beta_slow": 2}),
        case("yarn_beta_zero", 96, {**YARN, "beta_fast": 0, "beta_slow": 0}),
        case("yarn_equal_ends", 64, {**YARN, "beta_fast": 4, "beta_slow": 4, "truncate": False}),
        case("yarn_high_clamped", 64, {**YARN, "rope_theta": 20.0}),
        case("yarn_original_outside", 64, YARN, original_max_position_embeddings=4096),
        ("old_default", 64, {"rope_theta": 25000.0}),
        ("old_null", 64, {"rope_theta": 25000.0, "rope_scaling": None}),
        ("absent", 64, {}),
        ("old_linear", 64, {"rope_theta": 25000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("old_llama3", 64, {"rope_theta": 500000.0, "max_position_embeddings": 131072,
                            "rope_scaling": {k: v for k, v in llama31.items() if k != "rope_theta"}}),
        ("old_yarn_both_types", 64,
         {"rope_theta": 1e6, "rope_scaling": {
             "type": "yarn", "rope_type": "yarn", "factor": 4.0,
             "original_max_position_embeddings": 2048}}),
        ("scaling_wins", 64, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4},
                              "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 3e4}),
        ("theta_inside_wins", 64, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
                                   "rope_theta": 3e4}),
    ]


def make_rope():
    """Each case: keys of config.json that matter, and what LlamaRotaryEmbedding makes of them."""
    cases = []
    for name, head_dim, keys in rope_cases():
        keys = {"max_position_embeddings": 2048, **keys}
        document = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 64,
                    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
                    "head_dim": head_dim, **keys}
        document = json.loads(json.dumps(document))
        rotary = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(document))))
        cases.append(json.dumps({
            "name": name, "config": document, "attention_scaling": float(rotary.attention_scaling),
            "inv_freq": [float(f"{float(x):.9g}") for x in rotary.inv_freq]}))
    (HERE / "rope.json").write_text("[\n" + ",\n".join(cases) + "\n]\n")
    print(f"rope.json          {len(cases)} cases")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="one model, or rope")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    for seed, name in enumerate(MODELS, start=1):
        if only in (None, name):
            make(name, seed)
    if only in (None, "rope"):
        make_rope()


if __name__ == "__main__":
    main()
