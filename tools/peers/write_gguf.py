"""Writes a Hugging Face Llama checkpoint as GGUF, so that llama.cpp runs the same weights.

    python write_gguf.py MODEL_DIR OUT.gguf [f32|f16|bf16]

For one safetensors file, RoPE without scaling, and Llama 3's split pattern with every piece merged
(llama.cpp's `dbrx`; its `llama-bpe` looks whole pieces up first), which is what tools/demo/recall-4m
has. Anything else is refused. Needs the package gguf.
"""

import json
import pathlib
import struct
import sys

import gguf
import numpy as np

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(rows, n_heads):
    """RoPE's pairs side by side, as llama.cpp's Llama has them, from halves of a head."""
    head = rows.reshape(n_heads, 2, -1, rows.shape[-1])
    return head.swapaxes(1, 2).reshape(rows.shape)


def tensors(path):
    """Yields (name, fp32 array) of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(data[begin:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        yield name, array.reshape(entry["shape"]).astype(np.float32)


def add_tokenizer(writer, config, tokenizer):
    size = config["vocab_size"]
    tokens = [f"[UNUSED{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("dbrx")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)


def main(model_dir, out, kind="f16"):
    model = pathlib.Path(model_dir)
    config = json.loads((model / "config.json").read_text())
    if config["architectures"] != ["LlamaForCausalLM"] or config.get("rope_scaling"):
        sys.exit(f"{model}: expected a LlamaForCausalLM without RoPE scaling")
    types = {"f32": None, "f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16}
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    head_dim = config.get("head_dim", config["hidden_size"] // n_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, config, json.loads((model / "tokenizer.json").read_text()))
    for name, array in tensors(model / "model.safetensors"):
        if "q_proj" in name or "k_proj" in name:
            array = interleaved(array, n_heads if "q_proj" in name else n_kv_heads)
        stored = types[kind] if array.ndim > 1 else None
        if stored is None:
            writer.add_tensor(gguf_name(name), array)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4 or sys.argv[3:] not in ([], ["f32"], ["f16"], ["bf16"]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
