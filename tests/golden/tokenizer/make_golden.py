#!/usr/bin/env python3
"""Makes the tokenizers and the expected hashes that tests/tokenizer compares against.

Needs the package `tokenizers` (made with 0.23.3). Run in this directory:  python3 make_golden.py
Writes {gpt2,llama3,qwen2,llama2}/tokenizer.json (small vocabularies trained here, with the split
patterns and normalizers of the models they are named after) and golden.json: a hash of the ids of
every block of two corpora, and of variants of the gpt2 and llama2 files that exercise one option each.

The corpora are not stored. tests/tokenizer/corpus.h generates the same bytes from fragments.json
and the same random numbers; change both or neither.
"""

import json
import os

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers, Regex
import tokenizers

MASK = (1 << 64) - 1
BLOCK_BYTES = 65536
MIXED_BLOCKS = 168      # 10.5 MiB
SWEEP_POINTS = 4096     # code points per block of the sweep: 272 blocks cover all of Unicode
VARIANT_BLOCKS = 4
SPACES = ["\t", "\n", "\v", "\f", "\r", " ", " ", " ", " ", "\x85", "\xa0", "\u1680", "\u2000",
          "\u2004", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\r\n"]
PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


class Random:
    """xorshift64*, seeded by a number that is not zero."""

    def __init__(self, seed):
        self.state = (seed * 0x9E3779B97F4A7C15 + 1) & MASK

    def below(self, n):
        x = self.state
        x ^= x >> 12
        x ^= (x << 25) & MASK
        x ^= x >> 27
        self.state = x
        return (((x * 0x2545F4914F6CDD1D) & MASK) >> 33) % n


def code_point(random):
    kind = random.below(8)
    plane = 0 if kind < 4 else 1 if kind < 6 else 2 if kind < 7 else random.below(17)
    point = plane * 0x10000 + random.below(0x10000)
    return 0x20 if 0xD800 <= point < 0xE000 else point


def mixed_block(index, fragments, n_bytes=BLOCK_BYTES):
    random = Random(index + 1)
    out = bytearray()
    while len(out) < n_bytes:
        kind = random.below(100)
        if kind < 72:
            out += fragments[random.below(len(fragments))]
        elif kind < 79:
            for _ in range(1 + random.below(6)):
                out += chr(code_point(random)).encode()
        elif kind < 83:
            for _ in range(1 + random.below(5)):
                out.append(random.below(256))
        elif kind < 85:
            for _ in range(1 + random.below(4)):
                out.append(0x80 + random.below(128))
        elif kind < 89:
            space = SPACES[random.below(len(SPACES))].encode()
            out += space * (1 + random.below(24))
        elif kind < 93:
            for _ in range(1 + random.below(12)):
                out.append(0x30 + random.below(10))
        else:
            if random.below(2):
                out.append(0x20)
            for _ in range(1 + random.below(14)):
                out.append(0x61 + random.below(26))
    return bytes(out)


def sweep_block(index):
    out = bytearray()
    for point in range(index * SWEEP_POINTS, (index + 1) * SWEEP_POINTS):
        if 0xD800 <= point < 0xE000:
            continue
        c = chr(point).encode()
        out += c + b"1" + c + b"b " + c + b"'" + c + c + b"q\xcd\x85" + c + b"\xcc\xb4"
    return bytes(out)


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        for b in i.to_bytes(4, "little"):
            h = ((h ^ b) * 0x100000001B3) & MASK
    return "%016x" % h


def hashes(tokenizer, blocks):
    texts = [b.decode("utf-8", errors="replace") for b in blocks]
    return [fnv(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def byte_level(add_prefix_space, use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern, behavior, invert)


def train_characters(texts, n_vocab):
    """SentencePiece's kind, as transformers converts it: characters, with bytes behind them, spaces as
    tokens' first characters, no pre-tokenizer."""
    bytes_ = ["<0x%02X>" % byte for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                                 normalizers.Replace(" ", "\u2581")])
    # So that no token has a space inside; runs of them may be tokens.
    tokenizer.pre_tokenizer = split(Regex("\u2581*[^\u2581]+|\u2581+"))
    trainer = trainers.BpeTrainer(vocab_size=n_vocab, special_tokens=special + bytes_,
                                  show_progress=False, max_token_length=16, limit_alphabet=700)
    tokenizer.train_from_iterator(texts, trainer)
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return json.loads(tokenizer.to_str())


def train(name, texts, n_vocab):
    if name == "llama2":
        return train_characters(texts, n_vocab)
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "gpt2":
        tokenizer.pre_tokenizer = byte_level(False, True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split(Regex(PATTERNS[name])), byte_level(False, False)])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"] if name == "gpt2" else []
    trainer = trainers.BpeTrainer(vocab_size=n_vocab, special_tokens=special, show_progress=False,
                                  max_token_length=24,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    data = json.loads(tokenizer.to_str())
    if name == "gpt2":  # the older form of merges
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    if name == "llama3":  # tokens that no merges lead to: only ignore_merges finds them
        for word in ["Ġzebrafish", "Ġattention", "ĠMillionth", "00", "123", "Ġquick", "snake"]:
            vocab = data["model"]["vocab"]
            vocab.setdefault(word, len(vocab))
        data["model"]["merges"] = [m for m in data["model"]["merges"]
                                   if "".join(m) not in ("Ġattention", "Ġquick", "123")
                                   and m[0] not in ("Ġattention", "Ġquick", "123")
                                   and m[1] not in ("Ġattention", "Ġquick", "123")]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if name == "llama3":
        tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>",
                                      "<|start_header_id|>", "<|eot_id|>"])
        bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B:1",
                                          special_tokens=[bos])])
    if name == "qwen2":
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False),
                              AddedToken("</tool_call>", normalized=False)])
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    data = json.loads(tokenizer.to_str())
    if name == "gpt2":
        data["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m
                                   for m in data["model"]["merges"]]
    return data


def variants():
    """Members of tokenizer.json to replace, one variant per option. %d: the first free id."""

    def sequence(*steps):
        return {"pre_tokenizer": pre_tokenizers.Sequence([*steps, byte_level(False, False)])}

    def added(*tokens):
        return {"added": list(tokens)}

    token = AddedToken
    yield "prefix_space", {"pre_tokenizer": byte_level(True, True)}
    yield "prefix_space_added", {"pre_tokenizer": byte_level(True, True),
                                 **added(token("abc"), token("[S]", special=True))}
    yield "no_split", {"pre_tokenizer": byte_level(False, False)}
    yield "digits_each", sequence(pre_tokenizers.Digits(individual_digits=True))
    yield "digits_runs", sequence(pre_tokenizers.Digits(individual_digits=False))
    yield "digits_gpt2", {"pre_tokenizer": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(False, True)])}
    yield "prefix_each", {"pre_tokenizer": pre_tokenizers.Sequence(
        [split(Regex(r"\p{N}+|,")), byte_level(True, True)])}
    for behavior in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]:
        yield "space_" + behavior, sequence(split(" ", behavior))
        yield "dot_" + behavior, sequence(split(".", behavior))
        yield "word_" + behavior, sequence(split(Regex(r"\w+"), behavior))
        yield "invert_" + behavior, sequence(split(Regex(r"\p{L}+|\d"), behavior, True))
        yield "empty_" + behavior, sequence(split(Regex(r"a*"), behavior))
    yield "o200k", sequence(split(Regex(O200K)))
    yield "deepseek", sequence(split(Regex(r"\p{N}{1,3}")), split(Regex(r"[一-龥぀-ゟ゠-ヿ]+")),
                               split(Regex(DEEPSEEK)))
    yield "lines", sequence(split(Regex(r"^\s+|\s+$|.+")))
    yield "han", sequence(split(Regex(r"\p{Han}+|\p{Hiragana}+|\p{Katakana}+|\p{Hangul}+")))
    yield "categories", sequence(split(Regex(r"\p{Lu}+|\p{^L}{,2}a|\p{Mn}|\p{Sc}|\P{M}\p{Me}|\W\x41")))
    yield "lookbehind", sequence(split(Regex(r"(?<=[a-z])(?=[A-Z0-9])|(?<!\s)\s\S++|(?>x|xy)z")))
    yield "nfc", {"normalizer": normalizers.NFC()}
    strip = [token("[L]", lstrip=True), token("[R]", rstrip=True),
             token("[LR]", lstrip=True, rstrip=True, special=True)]
    yield "strip", added(*strip)
    yield "single_word", added(token("[W]", single_word=True), token("ab", single_word=True),
                               token("the", single_word=True, lstrip=True))
    yield "longest", added(token("ab"), token("abc"), token("abcd", special=True), token("bcd"))
    yield "all_flags", added(*strip, token("[W]", single_word=True, lstrip=True), token(" "),
                             token("[S]", special=True, normalized=False), token("\n\n"))
    yield "normalized", {"normalizer": normalizers.NFC(), **added(
        token("Cafe\u0301", normalized=True), token("e\u0301", normalized=False),
        token("\u212b", normalized=True), token("[S]", normalized=False))}
    yield "keep_special", {"encode_special": True, **added(
        *strip, token("[S]", special=True, rstrip=True), token("abc", special=True), token("bc"))}
    yield "template", {"post": processors.TemplateProcessing(
        single="<|endoftext|> $A [S] [S]", special_tokens=[("<|endoftext|>", 0), ("[S]", 5)])}


def character_variants():
    """The same of the llama2 file."""
    token = AddedToken
    space = "\u2581"
    metaspace = pre_tokenizers.Metaspace
    first = {"normalizer": None, "pre_tokenizer": metaspace(space, "first", False)}
    added = [token("[S]", special=True, normalized=False), token("abc"), token("the "),
             token("[R]", rstrip=True, normalized=False), token(" [L]", lstrip=True)]
    yield "added", {"added": added}
    yield "keep_special", {"encode_special": True, "added": added}
    yield "first", first
    yield "first_added", {**first, "added": added}
    yield "always", {"normalizer": None, "pre_tokenizer": metaspace(space, "always", False)}
    yield "always_added", {"normalizer": None, "added": added,
                           "pre_tokenizer": metaspace(space, "always", True)}
    yield "never", {"normalizer": None, "pre_tokenizer": metaspace(space, "never", False)}
    yield "never_split", {"normalizer": None, "pre_tokenizer": metaspace(space, "never", True)}
    yield "no_prefix", {"normalizer": normalizers.Replace(" ", space),
                        "decoder": decoders.Sequence([decoders.Replace(space, " "),
                                                      decoders.ByteFallback(), decoders.Fuse()])}
    yield "merged_with_previous", {"normalizer": normalizers.Replace(" ", space),
                                   "pre_tokenizer": split(" ", "merged_with_previous")}
    yield "nfc", {"added": added, "normalizer": normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("  ", "<two>"), normalizers.Prepend(space),
         normalizers.Replace(" ", space)])}
    yield "digits", {"normalizer": None, "pre_tokenizer": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), metaspace(space, "first", False)])}
    yield "digits_always", {"normalizer": None, "pre_tokenizer": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), metaspace(space, "always", True)])}
    yield "strip", {"decoder": decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 3, 0)])}


TEXTS = ["x <|endoftext|> y", "", " ", "   two", "caf\u00e9 <s> a</s>b", "[S] x[R]  y  [L] z", "a",
         "\u2581x", "\n\nline", "\U0001F600 \u4f60\u597d", "<0x41> <0x0a>", "the abc the"]


def expected_of_texts(tokenizer):
    """Of every short text: a hash of the ids, and their text without and with special tokens."""
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    return [[fnv(ids), tokenizer.decode(ids, skip_special_tokens=True),
             tokenizer.decode(ids, skip_special_tokens=False)] for ids in encoded]


def main():
    directory = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(directory, "fragments.json"), encoding="utf-8") as file:
        fragments = [f.encode() for f in json.load(file)]
    mixed = [mixed_block(i, fragments) for i in range(MIXED_BLOCKS)]
    sweep = [sweep_block(i) for i in range(0x110000 // SWEEP_POINTS)]
    golden = {"tokenizers": tokenizers.__version__,
              "corpus": [fnv(list(b)) for b in (mixed[0], mixed[-1], sweep[1])], "texts": TEXTS,
              "models": {}}
    texts = [mixed_block(1000 + i, fragments).decode("utf-8", errors="ignore") for i in range(24)]
    bases = {}
    for name, n_vocab in [("gpt2", 4096), ("llama3", 5000), ("qwen2", 4500), ("llama2", 4600)]:
        data = train(name, texts, n_vocab)
        os.makedirs(os.path.join(directory, name), exist_ok=True)
        path = os.path.join(directory, name, "tokenizer.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        tokenizer = Tokenizer.from_file(path)
        bases[name] = data
        golden["models"][name] = {
            "mixed": hashes(tokenizer, mixed), "sweep": hashes(tokenizer, sweep),
            "with_special": tokenizer.encode("It's 12345 caf\u00e9s").ids,
            "texts": expected_of_texts(tokenizer)}
        print(name, len(data["model"]["vocab"]), os.path.getsize(path))
    golden["variants"] = []
    for base, name, change in [*(("gpt2", *v) for v in variants()),
                               *(("llama2", *v) for v in character_variants())]:
        tokenizer = Tokenizer.from_str(json.dumps(bases[base]))
        for key in ("pre_tokenizer", "normalizer", "decoder"):
            if key in change:
                setattr(tokenizer, key, change[key])
        if "post" in change:
            tokenizer.post_processor = change["post"]
        tokenizer.add_tokens(change.get("added", []))
        tokenizer.encode_special_tokens = change.get("encode_special", False)
        blocks = [mixed_block(5000 + i, fragments) for i in range(VARIANT_BLOCKS)]
        data = json.loads(tokenizer.to_str())
        data.pop("model")
        golden["variants"].append({
            "base": base, "name": name, "replace": data, "keep_special": change.get("encode_special", False),
            "hashes": hashes(tokenizer, blocks), "texts": expected_of_texts(tokenizer)})
    with open(os.path.join(directory, "golden.json"), "w", encoding="utf-8") as file:
        json.dump(golden, file, indent=0)
        file.write("\n")


if __name__ == "__main__":
    main()
