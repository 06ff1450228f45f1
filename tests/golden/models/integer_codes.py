"""Weights as integers with scales, and how checkpoints of three kinds lay them out, for make_models.py.

A scheme is a dict: method ("gptq", "gptq_v2", "awq", "packed", "plain"), bits, group (columns; 0: a whole row),
symmetric, and for gptq act_order, for the last two `ignore` (modules that stay as they are).

The layouts were compared with what AutoAWQ 0.2.9 (WQLinear_GEMM) and GPTQModel 7.7 (pack_original, and its
conversion to version 1) pack.
"""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the columns of eight, from the lowest bits of a word on


def quantise(value, scheme, generator):
    """Codes [n][k] from 0 on, scales [n][groups] and zeros [n][groups], and the group of each column."""
    n, k = value.shape
    bits, group = scheme["bits"], scheme["group"] or k
    group_of = torch.arange(k) // group
    if scheme.get("act_order"):
        group_of = group_of[torch.randperm(k, generator=generator)]
    last = 2**bits - 1
    scales = torch.empty(n, k // group)
    zeros = torch.empty(n, k // group, dtype=torch.int32)
    codes = torch.empty(n, k, dtype=torch.int32)
    for g in range(k // group):
        columns = group_of == g
        part = value[:, columns].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if scheme["symmetric"]:
            scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
            zero = torch.full_like(scale, 2 ** (bits - 1))
        else:
            scale = (high - low) / last
            zero = (-low / scale).round().clamp(0, last)
            if g == 0:
                zero[::5] = 0  # what is hard to store, and rare
        scale = scale.to(scale_dtype(scheme)).float()
        scales[:, g], zeros[:, g] = scale, zero.to(torch.int32)
        codes[:, columns] = ((part / scale[:, None]).round() + zero[:, None]).clamp(0, last).to(torch.int32)
    return codes, scales, zeros, group_of


def scale_dtype(scheme):
    return torch.float16 if scheme["method"] in ("gptq", "gptq_v2", "awq") else torch.bfloat16


def values_of(codes, scales, zeros, group_of):
    return (codes - zeros[:, group_of]).float() * scales[:, group_of]


def pack_words(rows, bits, order=None):
    """[m][columns] to int32 [m][columns * bits / 32], the first of each word (in its order) in the lowest bits."""
    per_word = 32 // bits
    words = rows.reshape(rows.shape[0], -1, per_word).to(torch.int64)
    packed = torch.zeros(words.shape[:2], dtype=torch.int64)
    for place, column in enumerate(order or range(per_word)):
        packed |= words[:, :, column] << (bits * place)
    return (packed & 0xFFFFFFFF).to(torch.uint32).view(torch.int32).contiguous()


def subtract(words, less):
    return ((words.to(torch.int64) - less) & 0xFFFFFFFF).to(torch.uint32).view(torch.int32).contiguous()


def tensors_of(module, value, scheme, generator):
    """What a checkpoint has of a matrix, and what that is as numbers."""
    method, bits = scheme["method"], scheme["bits"]
    codes, scales, zeros, group_of = quantise(value, scheme, generator)
    stored = scales.to(scale_dtype(scheme))
    if method in ("gptq", "gptq_v2"):
        # Version 1 has one less everywhere, word by word: a zero of 0 borrows from the next.
        less = {4: 0x11111111, 8: 0x01010101}[bits] if method == "gptq" else 0
        tensors = {
            "qweight": pack_words(codes, bits).T.contiguous(),
            "qzeros": subtract(pack_words(zeros.T, bits), less),
            "scales": stored.T.contiguous(),
            "g_idx": group_of.to(torch.int32),
            "bias": None,
        }
    elif method == "awq":
        tensors = {
            "qweight": pack_words(codes.T, bits, AWQ_ORDER),
            "qzeros": pack_words(zeros.T, bits, AWQ_ORDER),
            "scales": stored.T.contiguous(),
        }
    else:
        middle = 2 ** (bits - 1)
        signed = (codes - middle).to(torch.int8)
        tensors = {"weight_scale": stored}
        if method == "packed":
            tensors["weight_packed"] = pack_to_int32(signed, bits)
            tensors["weight_shape"] = torch.tensor(value.shape)
        else:
            tensors["weight"] = signed
        if not scheme["symmetric"]:
            signed_zeros = (zeros - middle).to(torch.int8)
            packed = method == "packed"
            tensors["weight_zero_point"] = (
                pack_to_int32(signed_zeros, bits, packed_dim=0).contiguous() if packed else signed_zeros)
    return {f"{module}.{name}": tensor for name, tensor in tensors.items()}, values_of(codes, scales, zeros, group_of)


def quantization_config(scheme):
    method, bits, group = scheme["method"], scheme["bits"], scheme["group"]
    if method in ("gptq", "gptq_v2"):
        return {
            "quant_method": "gptq", "bits": bits, "group_size": group or -1, "sym": scheme["symmetric"],
            "desc_act": scheme.get("act_order", False), "checkpoint_format": method, "damp_percent": 0.01}
    if method == "awq":
        return {
            "quant_method": "awq", "bits": bits, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": None}
    weights = {
        "num_bits": bits, "type": "int", "strategy": "group" if group else "channel", "group_size": group or None,
        "symmetric": scheme["symmetric"], "dynamic": False, "actorder": None}
    activations = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized" if method == "packed" else "int-quantized",
        "ignore": ["lm_head", *scheme.get("ignore", [])],
        "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": weights,
            "input_activations": activations if method == "plain" else None}}}
