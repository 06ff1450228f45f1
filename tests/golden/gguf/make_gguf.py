#!/usr/bin/env python3
"""Makes the GGUF files of this folder, with llama.cpp's own converter, and blocks.json.

NAME.gguf is what llama.cpp makes of ../models/NAME (bf16, without a tokenizer: those models have none); the tests
compare what the engine computes from it with the golden values there; of some there are golden values here. tokenizer_NAME.gguf is a vocabulary only, of
../tokenizer/NAME. blocks.json has random blocks of every format, and what gguf-py decodes them to.

To make them again (made with the llama.cpp of llama-cpp-python 0.3.36 and its gguf-py):

  pip install torch transformers sentencepiece pyyaml tqdm
  python tests/golden/gguf/make_gguf.py LLAMA_CPP      # a folder with convert_hf_to_gguf.py
"""

import argparse
import base64
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ["llama_biases", "llama_rope_llama3", "llama_rope_yarn", "mixtral", "qwen2", "qwen3", "glm4_yarn"]
FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
# Where the f16 numbers of a block are, which must be finite.
NUMBERS = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2],
           "Q6_K": [208], "MXFP4": []}


def make_others(folder):
    """Models of which llama.cpp makes something else, were they those of ../models: layers of which some have no
    experts, heads of a width that does not follow from the others, a factor on attention of its own. Golden values
    of these are here."""
    sys.path.insert(0, str(HERE.parent / "models"))
    import make_models as models

    others = {
        "qwen3_moe_plain": models.qwen3_moe(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32,
                                            norm_topk_prob=True, tie_word_embeddings=True),
        "glm_plain": models.glm(num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True),
        "phi3_long_partial": models.phi3(rope_parameters=models.longrope(48, partial_rotary_factor=0.75),
                                         intermediate_size=32, partial_rotary_factor=0.75, tie_word_embeddings=True,
                                         original_max_position_embeddings=64),
    }
    models.HERE = folder
    for name, config in others.items():
        models.MODELS[name] = (config, "bf16", {})
        models.make(name, 1)
        (HERE / name).mkdir(exist_ok=True)
        for golden in ("golden.json", "golden.safetensors"):
            shutil.copy(folder / name / golden, HERE / name / golden)
        convert(folder / name)


def convert(source):
    import gguf
    from conversion import base
    from conversion import get_model_class

    hparams = base.ModelBase.load_hparams(source, False)
    architecture = base.get_model_architecture(hparams, base.ModelType.TEXT)
    converter_class = get_model_class(architecture)

    class Converter(converter_class):
        model_arch = converter_class.model_arch

        def set_vocab(self):
            self.gguf_writer.add_tokenizer_model("none")

    target = HERE / f"{source.name}.gguf"
    converter = Converter(source, gguf.LlamaFileType.MOSTLY_BF16, target)
    converter.write()


def write_tokenizer(name, kind, pre):
    import gguf

    tokenizer = json.loads((HERE.parent / "tokenizer" / name / "tokenizer.json").read_text())
    model = tokenizer["model"]
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    tokens = [by_id[i] for i in range(len(by_id))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    types = []
    for i, token in enumerate(tokens):
        if i in added:
            kind_of = gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
        elif kind == "llama" and token.startswith("<0x") and len(token) == 6:
            kind_of = gguf.TokenType.BYTE
        else:
            kind_of = gguf.TokenType.NORMAL
        types.append(kind_of)

    writer = gguf.GGUFWriter(HERE / f"tokenizer_{name}.gguf", "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if kind == "llama":
        # As SentencePiece trains them: the sooner two were merged, the higher.
        first = {}
        for rank, merge in enumerate(merges):
            first.setdefault("".join(merge.split(" ")), rank)
        writer.add_token_scores([-float(first.get(token, len(merges))) for token in tokens])
    else:
        writer.add_token_merges(merges)
    writer.add_token_types(types)
    bos = next((i for i, token in added.items() if token["content"] in ("<s>", "<|begin_of_text|>")), None)
    if bos is not None:
        writer.add_bos_token_id(bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def make_blocks():
    from gguf import GGMLQuantizationType, quants

    random = np.random.default_rng(1)
    result = {}
    for name in FORMATS:
        kind = GGMLQuantizationType[name]
        elements, n_bytes = quants.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (16, n_bytes), dtype=np.uint8)
        for at in NUMBERS.get(name, [0]):
            numbers = (random.standard_normal(16) * 0.1).astype(np.float16)
            blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(16, 2)
        if name == "MXFP4":
            blocks[:, 0] = random.integers(100, 140, 16)
        values = quants.dequantize(blocks, kind).reshape(-1).astype(np.float32)
        result[name] = {"elements": elements, "bytes": n_bytes,
                        "blocks": base64.b64encode(blocks.tobytes()).decode(),
                        "values": base64.b64encode(bf16(values).tobytes()).decode()}
    (HERE / "blocks.json").write_text(json.dumps(result, indent=1) + "\n")


def bf16(values):
    """To the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=pathlib.Path)
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.llama_cpp), str(arguments.llama_cpp / "gguf-py")]
    for model in MODELS:
        convert(HERE.parent / "models" / model)
    with tempfile.TemporaryDirectory() as folder:
        make_others(pathlib.Path(folder))
    for name, kind, pre in [("gpt2", "gpt2", "gpt-2"), ("llama2", "llama", "default"), ("llama3", "gpt2", "llama-bpe"),
                            ("qwen2", "gpt2", "qwen2")]:
        write_tokenizer(name, kind, pre)
    make_blocks()


if __name__ == "__main__":
    main()
