// GGUF files: the format, blocks of weights, and what metadata and names become.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/gguf/block_format.h"
#include "engine/gguf/gguf_config.h"
#include "engine/gguf/gguf_file.h"
#include "engine/gguf/gguf_model.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tests/model/files.h"
#include "tests/gguf_writer.h"

namespace tiercel::test {
namespace {

constexpr uint32_t kF32 = 0, kQ4_0 = 2, kQ8_0 = 8, kIq2Xs = 17;

GgufFile::Contents parse(const std::string& file, const std::string& name) {
  return GgufFile::parse_header(std::as_bytes(std::span(file)), file.size(), name);
}
void expect_refused(const std::string& file, const std::vector<std::string>& parts) {
  const std::string name = "x.gguf";
  expect_error([&] { parse(file, name); }, parts);
}

std::string floats(size_t n, float value = 1) {
  std::string data;
  for (size_t i = 0; i < n; ++i) data += GgufWriter::bytes(value);
  return data;
}

// ---- the format ----

TEST(Gguf, ReadsEveryTypeOfValue) {
  GgufWriter writer;
  writer.text("a.text", "hello").u32("a.u32", 7).f32("a.f32", 1e-5f).flag("a.flag", true);
  writer.add("a.u8", GgufType::kU8, GgufWriter::bytes(uint8_t{200}));
  writer.add("a.i8", GgufType::kI8, GgufWriter::bytes(int8_t{-2}));
  writer.add("a.u16", GgufType::kU16, GgufWriter::bytes(uint16_t{60000}));
  writer.add("a.i16", GgufType::kI16, GgufWriter::bytes(int16_t{-300}));
  writer.add("a.i32", GgufType::kI32, GgufWriter::bytes(int32_t{-70000}));
  writer.add("a.u64", GgufType::kU64, GgufWriter::bytes(uint64_t{1} << 40));
  writer.add("a.i64", GgufType::kI64, GgufWriter::bytes(int64_t{-1} << 40));
  writer.add("a.f64", GgufType::kF64, GgufWriter::bytes(0.1));
  writer.add("a.huge", GgufType::kU64, GgufWriter::bytes(~uint64_t{0}));
  writer.texts("a.texts", {"x", "", "yz"});
  writer.array_of<int32_t>("a.integers", GgufType::kI32, {3, -1});
  writer.array_of<float>("a.floats", GgufType::kF32, {0.5f, 2});
  const TempDir dir;
  const GgufFile file = GgufFile::open(dir.write("x.gguf", writer.file()));
  EXPECT_EQ(file.metadata().size(), 16u);
  EXPECT_EQ(file.at("a.text").text(), "hello");
  EXPECT_EQ(file.at("a.u32").integer(0, 7), 7);
  EXPECT_EQ(file.at("a.f32").number(0, 1), 1e-5);  // as it was written, not 9.99999974e-06
  EXPECT_EQ(file.at("a.f64").number(0, 1), 0.1);
  EXPECT_TRUE(file.at("a.flag").boolean());
  EXPECT_EQ(file.at("a.u8").integer(0, 255), 200);
  EXPECT_EQ(file.at("a.i8").integer(-9, 9), -2);
  EXPECT_EQ(file.at("a.u16").integer(0, 1 << 16), 60000);
  EXPECT_EQ(file.at("a.i16").integer(-1000, 0), -300);
  EXPECT_EQ(file.at("a.i32").integer(-100000, 0), -70000);
  EXPECT_EQ(file.at("a.u64").integer(0, INT64_MAX), int64_t{1} << 40);
  EXPECT_EQ(file.at("a.i64").integer(INT64_MIN, 0), int64_t{-1} * (int64_t{1} << 40));
  EXPECT_EQ(file.at("a.texts").texts(), (std::vector<std::string_view>{"x", "", "yz"}));
  EXPECT_EQ(file.at("a.integers").integers(-1, 3), (std::vector<int64_t>{3, -1}));
  EXPECT_EQ(file.at("a.floats").floats(), (std::vector<float>{0.5f, 2}));
  EXPECT_FALSE(file.find("a.nothing"));
  expect_error([&] { file.at("a.nothing"); }, {"x.gguf", "expected a.nothing", "found none"});
  expect_error([&] { file.at("a.u32").integer(0, 6); }, {"x.gguf: a.u32", "from 0 to 6", "found 7"});
  expect_error([&] { file.at("a.huge").integer(0, INT64_MAX); }, {"found 18446744073709551615"});
  expect_error([&] { file.at("a.text").integer(0, 6); }, {"an integer", "found \"hello\""});
  expect_error([&] { file.at("a.text").boolean(); }, {"a truth value"});
  expect_error([&] { file.at("a.u32").text(); }, {"a string", "found 7"});
  expect_error([&] { file.at("a.f32").number(1, 2); }, {"a number from 1 to 2"});
  expect_error([&] { file.at("a.integers").texts(); }, {"an array of strings", "an array of 2 int32"});
  expect_error([&] { file.at("a.integers").integers(0, 3); }, {"element 1"});
  expect_error([&] { file.at("a.texts").floats(); }, {"an array of float32"});
}

TEST(Gguf, FindsTensors) {
  GgufWriter writer;
  writer.tensor("a", {2, 3}, kF32, floats(6, 2.5f)).tensor("b", {64, 2}, kQ8_0, std::string(4 * 34, '\1'));
  const TempDir dir;
  const GgufFile file = GgufFile::open(dir.write("x.gguf", writer.file()));
  ASSERT_EQ(file.tensors().size(), 2u);
  const TensorInfo &a = file.tensors()[0], &b = file.tensors()[1];
  EXPECT_EQ(a.shape, (std::vector<int64_t>{3, 2}));  // rows first
  EXPECT_TRUE(a.supported);
  EXPECT_EQ(number_at(a, 5), 2.5f);
  EXPECT_FALSE(b.supported);
  ASSERT_NE(b.blocks, nullptr);
  EXPECT_EQ(b.stored_dtype, "Q8_0");
  EXPECT_EQ(b.bytes, 136u);
  EXPECT_EQ(rows_of(b, 1, 1).data, b.data + 68);
}

TEST(Gguf, EveryTruncationIsRefused) {
  GgufWriter writer;
  writer.text("general.architecture", "llama").texts("t", {"x", "yz"}).u32("n", 1);
  writer.tensor("a", {32, 3}, kQ4_0, std::string(54, '\1'));
  const std::string whole = writer.file();
  EXPECT_EQ(parse(whole, "x").tensors.size(), 1u);
  const size_t data_end = whole.size() - 10;  // of which 10 bytes are padding
  for (size_t n = 0; n < data_end; ++n) expect_refused(whole.substr(0, n), {"x.gguf"});
}

TEST(Gguf, RefusesWhatTheFormatForbids) {
  GgufWriter writer;
  writer.magic = "GGML";
  expect_refused(writer.file(), {"begins with \"GGUF\"", "something else"});
  writer.magic = "GGUF";
  writer.version = 1;
  expect_refused(writer.file(), {"version 2 or 3, found 1"});
  writer.version = 3u << 24;
  expect_refused(writer.file(), {"other byte order"});
  const auto with = [](const std::function<void(GgufWriter&)>& change) {
    GgufWriter changed;
    change(changed);
    return changed.file();
  };
  expect_refused(with([](GgufWriter& w) { w.u32("a", 1).u32("a", 1); }), {"x.gguf: a", "once"});
  expect_refused(with([](GgufWriter& w) { w.add("a", GgufType{13}, "xxxx"); }), {"a type from 0 to 12, found 13"});
  expect_refused(with([](GgufWriter& w) { w.array("a", GgufType::kArray, 1, std::string(12, '\0')); }),
                 {"array of arrays"});
  expect_refused(with([](GgufWriter& w) { w.array("a", GgufType::kU64, ~uint64_t{0}, ""); }), {"truncated"});
  expect_refused(with([](GgufWriter& w) { w.array("a", GgufType::kString, ~uint64_t{0}, ""); }), {"truncated"});
  expect_refused(with([](GgufWriter& w) { w.add("a", GgufType::kString, GgufWriter::bytes(~uint64_t{0})); }),
                 {"at most", "damaged"});
  expect_refused(with([](GgufWriter& w) { w.u32("general.alignment", 12).tensor("a", {1}, kF32, floats(1)); }),
                 {"general.alignment", "multiple of 8"});
  const auto tensor = [&](std::string_view name, std::vector<uint64_t> shape, uint32_t type, uint64_t offset) {
    return with([&](GgufWriter& w) { w.tensor_at(name, shape, type, offset, floats(64)); });
  };
  expect_refused(tensor("a", {1, 1, 1, 1, 1}, kF32, 0), {"tensor a", "at most 4 dimensions"});
  expect_refused(tensor("a", {uint64_t{1} << 40, uint64_t{1} << 40}, kF32, 0), {"at most 2^56"});
  expect_refused(tensor("a", {~uint64_t{0}}, kF32, 0), {"at most 2^56"});
  expect_refused(tensor("a", {4, 0}, kF32, 0), {"tensor a", "found none"});
  expect_refused(tensor("a", {4}, 999, 0), {"a known type, found 999", "newer"});
  expect_refused(tensor("a", {4}, 31, 0), {"a known type, found 31", "given up", "Q4_0"});
  expect_refused(tensor("a", {33}, kQ4_0, 0), {"multiple of 32", "Q4_0", "found 33"});
  expect_refused(tensor("a", {4}, kF32, 4), {"multiple of 32, found 4"});
  expect_refused(tensor("a", {64}, kF32, 32), {"expected 256 bytes", "truncated"});
  expect_refused(tensor("a", {4}, kF32, ~uint64_t{0} - 31), {"truncated"});
  expect_refused(with([](GgufWriter& w) {
                   w.tensor("a", {4}, kF32, floats(8)).tensor_at("b", {4}, kF32, 0, "");
                 }),
                 {"tensor", "begins within that of"});
  expect_refused(with([](GgufWriter& w) { w.tensor("a", {4}, kF32, floats(8)).tensor("a", {4}, kF32, floats(8)); }),
                 {"tensor a", "once"});
}

// ---- blocks ----

std::string from_base64(const std::string& text) {
  std::string bytes;
  uint32_t bits = 0, n = 0;
  for (const char c : text) {
    if (c == '=') break;
    const std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bits = bits << 6 | static_cast<uint32_t>(digits.find(c));
    if ((n += 6) >= 8) bytes += static_cast<char>(bits >> (n -= 8) & 0xff);
  }
  return bytes;
}

const BlockFormat* format_named(const std::string& name) {
  for (uint32_t id = 0; id < 64; ++id) {
    const BlockFormat* format = find_block_format(id);
    if (format != nullptr && name == format->name) return format;
  }
  return nullptr;
}

TEST(GgufBlocks, AreDecodedAsGgufPyDoes) {
  const nlohmann::json golden = read_json(golden_models() / "../gguf/blocks.json");
  EXPECT_EQ(golden.size(), 13u);
  for (const auto& [name, expected] : golden.items()) {
    const BlockFormat* format = format_named(name);
    ASSERT_NE(format, nullptr) << name;
    ASSERT_NE(format->unpack, nullptr) << name;
    EXPECT_EQ(format->elements, expected["elements"]) << name;
    EXPECT_EQ(format->bytes, expected["bytes"]) << name;
    const std::string blocks = from_base64(expected["blocks"]), values = from_base64(expected["values"]);
    const int64_t n = std::ssize(blocks) / format->bytes, k = n * format->elements;
    ASSERT_EQ(std::ssize(values), 2 * k) << name;
    const auto* data = reinterpret_cast<const std::byte*>(blocks.data());
    EXPECT_EQ(find_non_finite_block(*format, data, n), std::nullopt) << name;
    std::vector<bf16> decoded(static_cast<size_t>(k)), wanted(decoded.size());
    std::memcpy(wanted.data(), values.data(), values.size());
    EXPECT_EQ(decode_row(*format, data, k, decoded.data()), 0) << name;
    for (size_t i = 0; i < decoded.size(); ++i) {
      // A zero may have either sign: numpy's scales of 0 come from another order.
      const bool is_zero = ((decoded[i].bits | wanted[i].bits) & 0x7fff) == 0;
      ASSERT_TRUE(decoded[i] == wanted[i] || is_zero) << name << " element " << i;
    }
    // Codes are the same values.
    const WeightCodec codec = format->codec(k);
    const bool fits = name != "Q4_1" && name != "Q5_1" && name != "Q2_K";
    EXPECT_EQ(codec.is_coded(), fits) << name;
    if (!fits) continue;
    std::vector<std::byte> row(static_cast<size_t>(codec.row_bytes(k)));
    EXPECT_EQ(pack_row(*format, data, k, codec, row.data()), 0) << name;
    for (int64_t i = 0; i < k; ++i) {
      const auto unit_elements = kUnitBytes * 8 / codec.bits();
      const std::byte* unit = row.data() + i / unit_elements * kUnitBytes;
      const int64_t in_unit = i % unit_elements;
      uint16_t word;
      std::memcpy(&word, unit + in_unit % kUnitWords * 2, sizeof word);
      const int32_t code = word >> (in_unit / kUnitWords * codec.bits()) & ((1 << codec.bits()) - 1);
      std::vector<uint32_t> params(static_cast<size_t>(k / codec.group));
      std::memcpy(params.data(), row.data() + codec.code_bytes(k), params.size() * sizeof(uint32_t));
      ASSERT_EQ(value_of_code(codec, code, params.data(), i), decoded[static_cast<size_t>(i)]) << name << " element " << i;
    }
  }
}

TEST(GgufBlocks, NumbersThatAreNoneAreFound) {
  for (uint32_t id = 0; id < 64; ++id) {
    const BlockFormat* format = find_block_format(id);
    if (format == nullptr || format->unpack == nullptr) continue;
    for (const int16_t at : format->numbers) {
      if (at < 0) continue;
      std::string blocks(static_cast<size_t>(3 * format->bytes), '\0');
      blocks[static_cast<size_t>(2 * format->bytes + at + 1)] = 0x7c;  // infinity
      const auto* data = reinterpret_cast<const std::byte*>(blocks.data());
      EXPECT_EQ(find_non_finite_block(*format, data, 3), 2) << format->name;
      EXPECT_EQ(find_non_finite_block(*format, data, 2), std::nullopt) << format->name;
    }
  }
}

TEST(GgufBlocks, WhatIsTooLargeForBf16IsCounted) {
  const BlockFormat& format = *format_named("MXFP4");
  std::string block(17, '\x77');  // 6 times
  block[0] = static_cast<char>(255);
  const auto* data = reinterpret_cast<const std::byte*>(block.data());
  std::vector<bf16> values(32);
  EXPECT_EQ(decode_row(format, data, 32, values.data()), 32);
}

// ---- models ----

// A model of two layers, as small as may be.
GgufWriter small_model() {
  GgufWriter w;
  w.text("general.architecture", "qwen3").u32("qwen3.block_count", 1).u32("qwen3.embedding_length", 32);
  w.u32("qwen3.context_length", 64).u32("qwen3.feed_forward_length", 32).u32("qwen3.attention.head_count", 2);
  w.u32("qwen3.attention.head_count_kv", 1).u32("qwen3.attention.key_length", 16);
  w.f32("qwen3.attention.layer_norm_rms_epsilon", 1e-6f);
  w.tensor("token_embd.weight", {32, 8}, kF32, floats(256)).tensor("output_norm.weight", {32}, kF32, floats(32));
  w.tensor("blk.0.attn_q.weight", {32, 32}, kQ8_0, std::string(32 * 34, '\1'));
  return w;
}

TEST(GgufModel, NamesAreHuggingFaces) {
  const TempDir dir;
  const auto path = dir.write("x.gguf", small_model().file());
  const Checkpoint checkpoint = Checkpoint::open(path);
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string_view>{"model.embed_tokens.weight",
                                                               "model.layers.0.self_attn.q_proj.weight",
                                                               "model.norm.weight"}));
  EXPECT_EQ(checkpoint.file_of("model.norm.weight"), path.string());
  EXPECT_EQ(checkpoint.find_any("model.layers.0.self_attn.q_proj.weight")->stored_dtype, "Q8_0");
  const ModelConfig config = load_config(path);
  EXPECT_EQ(config.architecture, Architecture::kQwen3);
  EXPECT_EQ(config.rms_eps, 1e-6);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.block_formats, "Q8_0");
  ASSERT_EQ(config.coded_modules->size(), 1u);
  EXPECT_EQ(config.coded_modules->front().name, "model.layers.0.self_attn.q_proj");
  EXPECT_FALSE(config.coded_modules->front().codec(32).is_coded());  // too narrow
  EXPECT_EQ(config.coded_modules->front().codec(128), (WeightCodec{WeightCode::kInt8, 32}));
}

TEST(GgufModel, ExpertsAndJoinedProjectionsAreTakenApart) {
  GgufWriter w;
  w.text("general.architecture", "qwen3moe").u32("qwen3moe.attention.head_count", 2);
  w.u32("qwen3moe.attention.head_count_kv", 1).u32("qwen3moe.attention.key_length", 16).u32("qwen3moe.expert_count", 3);
  std::string numbers;
  for (int i = 0; i < 3 * 4 * 32; ++i) numbers += GgufWriter::bytes(static_cast<float>(i));
  w.tensor("blk.0.ffn_down_exps.weight", {32, 4, 3}, kF32, numbers);
  w.tensor("blk.0.ffn_gate_up_exps.weight", {32, 4, 3}, kF32, numbers);
  w.tensor("blk.0.attn_qkv.weight", {2, 64}, kF32, floats(128));
  const TempDir dir;
  const Checkpoint checkpoint = Checkpoint::open(dir.write("x.gguf", w.file()));
  const auto first_of = [&](const std::string& name, int64_t rows, int64_t columns) {
    const TensorInfo& tensor = checkpoint.require("model.layers.0." + name, {rows, columns});
    return number_at(tensor, 0);
  };
  EXPECT_EQ(first_of("mlp.experts.0.down_proj.weight", 4, 32), 0);
  EXPECT_EQ(first_of("mlp.experts.2.down_proj.weight", 4, 32), 256);
  EXPECT_EQ(first_of("mlp.experts.1.gate_proj.weight", 2, 32), 128);
  EXPECT_EQ(first_of("mlp.experts.1.up_proj.weight", 2, 32), 192);
  EXPECT_EQ(first_of("self_attn.q_proj.weight", 32, 2), 1);
  EXPECT_EQ(first_of("self_attn.k_proj.weight", 16, 2), 1);
  EXPECT_EQ(first_of("self_attn.v_proj.weight", 16, 2), 1);
  EXPECT_EQ(checkpoint.n_tensors(), 3u + 6u + 3u);
}

TEST(GgufModel, PartsAreOneModel) {
  const auto part = [](uint32_t number, uint32_t n) {
    GgufWriter w;
    w.add("split.no", GgufType::kU16, GgufWriter::bytes(static_cast<uint16_t>(number)));
    w.add("split.count", GgufType::kU16, GgufWriter::bytes(static_cast<uint16_t>(n)));
    return w;
  };
  const TempDir dir;
  GgufWriter first = part(0, 2), second = part(1, 2);
  first.text("general.architecture", "llama").tensor("token_embd.weight", {4, 2}, kF32, floats(8));
  second.tensor("blk.0.attn_norm.weight", {4}, kF32, floats(4, 3));
  const auto path = dir.write("m-00001-of-00002.gguf", first.file());
  expect_error([&] { Checkpoint::open(path); }, {"m-00002-of-00002.gguf", "download"});
  const auto other = dir.write("m-00002-of-00002.gguf", second.file());
  const Checkpoint checkpoint = Checkpoint::open(path);
  EXPECT_EQ(number_at(checkpoint.require("model.layers.0.input_layernorm.weight", {4}), 0), 3);
  EXPECT_EQ(checkpoint.file_of("model.layers.0.input_layernorm.weight"), other.string());
  expect_error([&] { Checkpoint::open(other); }, {"m-00002-of-00002.gguf", "first part", "-00001-of-"});
  const auto renamed = dir.write("renamed.gguf", first.file());
  expect_error([&] { Checkpoint::open(renamed); }, {"renamed.gguf", "-00001-of-00002.gguf"});
  dir.write("m-00002-of-00002.gguf", part(0, 2).file());
  expect_error([&] { Checkpoint::open(path); }, {"split.no", "1, as its name says"});
}

TEST(GgufModel, RefusesWhatItIsNot) {
  const TempDir dir;
  const auto refused = [&](GgufWriter w, const std::vector<std::string>& parts) {
    const auto path = dir.write("x.gguf", w.file());
    expect_error([&] { load_config(path); }, parts);
  };
  refused(GgufWriter().text("general.architecture", "gemma3"), {"x.gguf: general.architecture", "qwen3moe", "\"gemma3\""});
  refused(GgufWriter(), {"expected general.architecture"});
  refused(small_model().tensor("blk.0.ssm_a.weight", {4}, kF32, floats(4)), {"tensor blk.0.ssm_a.weight", "no part of it"});
  refused(small_model().tensor("blk.x.attn_q.weight", {4}, kF32, floats(4)), {"tensor blk.x.attn_q.weight"});
  refused(small_model().tensor("blk.0.attn_q.scale", {4}, kF32, floats(4)), {"tensor blk.0.attn_q.scale"});
  refused(small_model().f32("qwen3.attention.scale", 0.5f), {"qwen3.attention.scale", "not supported"});
  refused(small_model().flag("qwen3.attention.causal", false), {"qwen3.attention.causal"});
  refused(small_model().u32("qwen3.attention.value_length", 8), {"qwen3.attention.value_length", "16"});
  refused(small_model().u32("qwen3.rope.dimension_count", 8), {"qwen3.rope.dimension_count", "16", "turns all"});
  refused(small_model().text("qwen3.rope.scaling.type", "dynamic"), {"qwen3.rope.scaling.type", "linear, yarn"});
  refused(small_model().text("qwen3.rope.scaling.type", "yarn"), {"expected qwen3.rope.scaling.factor"});
  refused(small_model().tensor("blk.0.ffn_up.weight", {256, 32}, kIq2Xs, std::string(74 * 32, '\0')),
          {"x.gguf: tensor blk.0.ffn_up.weight", "Q4_K", "found IQ2_XS", "another quantisation"});
  refused(small_model().tensor("blk.0.attn_norm.weight", {32}, kQ8_0, std::string(34, '\0')),
          {"tensor blk.0.attn_norm.weight", "F32, F16, BF16, found Q8_0"});
  refused(small_model().texts("tokenizer.ggml.tokens", std::vector<std::string>(9, "x")),
          {"tokenizer.ggml.tokens", "at most 8 tokens"});
  refused(small_model().tensor("rope_freqs.weight", {8}, kF32, floats(8)).f32("qwen3.rope.scaling.factor", 2),
          {"qwen3.rope.scaling.factor", "rope_freqs.weight"});
  refused(small_model().f32("qwen3.rope.scaling.attn_factor", 2), {"qwen3.rope.scaling.attn_factor", "1"});
  GgufWriter layers;
  layers.text("general.architecture", "qwen3moe").u32("qwen3moe.block_count", 1u << 31);
  refused(layers, {"qwen3moe.block_count", "from 1 to 2048"});
  GgufWriter experts;
  experts.text("general.architecture", "qwen3moe").u32("qwen3moe.expert_count", 4);
  refused(experts.tensor("blk.0.ffn_up_exps.weight", {1, 1, 5}, kF32, floats(5)),
          {"tensor blk.0.ffn_up_exps.weight", "expected 4 experts, found shape [5, 1, 1]"});
  expect_error([&] { load_config(dir.path() / "missing.gguf"); }, {"missing.gguf", "No such file"});
  expect_error([&] { Tokenizer::load(dir.write("x.gguf", small_model().file()).string()); },
               {"x.gguf", "expected tokenizer.ggml.tokens"});
  // A folder of such files is none of a checkpoint.
  expect_error([&] { Checkpoint::open(dir.path()); }, {"x.gguf", "give -m that file"});
}

// What tools write that means nothing.
TEST(GgufModel, NeutralValuesAreAccepted) {
  const TempDir dir;
  GgufWriter w = small_model();
  w.f32("qwen3.attention.scale", 0).f32("qwen3.logit_scale", 1).u32("qwen3.expert_shared_count", 0);
  w.f32("qwen3.attention.clamp_kqv", 0).u32("qwen3.expert_group_count", 1).f32("qwen3.rope.scaling.attn_factor", 1);
  w.text("qwen3.rope.scaling.type", "linear").f32("qwen3.rope.scaling.factor", 1);
  w.tensor("rope_freqs.weight", {8}, kF32, floats(8, 2));
  const ModelConfig config = load_config(dir.write("x.gguf", w.file()));
  EXPECT_EQ(config.rope.short_factor, std::vector<double>(8, 2.0));
  EXPECT_FALSE(config.rope.is_long(1 << 30));
}

TEST(GgufModel, OtherFactsAreRead) {
  const TempDir dir;
  GgufWriter w = small_model();
  w.texts("tokenizer.ggml.tokens", {"a", "<|im_end|>", "b", "<|endoftext|>"});
  w.array_of<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1, 3, 1, 3});
  w.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 1);
  w.u32("tokenizer.ggml.eot_token_id", ~0u);  // none
  w.text("tokenizer.chat_template", "{{ messages | length }}").f32("general.sampling.temp", 0.6f);
  w.add("general.sampling.top_k", GgufType::kI32, GgufWriter::bytes(int32_t{20}));
  w.text("qwen3.rope.scaling.type", "yarn").f32("qwen3.rope.scaling.factor", 4);
  w.u32("qwen3.rope.scaling.original_context_length", 32).f32("qwen3.rope.freq_base", 1e6f);
  const auto path = dir.write("x.gguf", w.file());
  const ModelConfig config = load_config(path);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(config.sampling.temperature, 0.6);
  EXPECT_EQ(config.sampling.top_k, 20);
  EXPECT_EQ(config.sampling.do_sample, true);
  EXPECT_EQ(config.rope.type, RopeType::kYarn);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.original_max_position, 32);
  EXPECT_TRUE(ChatTemplate::exists(path.string()));
  expect_error([&] { ChatTemplate::load(path.string()); }, {"x.gguf", "chat template that can be run"});
}

TEST(GgufTokenizer, RefusesWhatItDoesNotKnow) {
  const TempDir dir;
  const auto refused = [&](const std::function<void(GgufWriter&)>& change, const std::vector<std::string>& parts) {
    GgufWriter w;
    w.text("general.architecture", "llama");
    change(w);
    const std::string path = dir.write("x.gguf", w.file()).string();
    expect_error([&] { Tokenizer::load(path); }, parts);
  };
  const auto with_tokens = [](GgufWriter& w, const char* model) -> GgufWriter& {
    return w.text("tokenizer.ggml.model", model).texts("tokenizer.ggml.tokens", {"a", "b", "ab"});
  };
  refused([&](GgufWriter& w) { with_tokens(w, "bert"); }, {"tokenizer.ggml.model", "gpt2", "\"bert\""});
  refused([&](GgufWriter& w) { with_tokens(w, "gpt2"); }, {"expected tokenizer.ggml.pre"});
  refused([&](GgufWriter& w) { with_tokens(w, "gpt2").text("tokenizer.ggml.pre", "default"); },
          {"tokenizer.ggml.pre", "llama-bpe, ", "qwen2", "original checkpoint"});
  refused([&](GgufWriter& w) {
    with_tokens(w, "gpt2").text("tokenizer.ggml.pre", "qwen2").texts("tokenizer.ggml.merges", {"a c"});
  }, {"tokenizer.ggml.merges", "\"c\" is none"});
  refused([&](GgufWriter& w) {
    with_tokens(w, "gpt2").text("tokenizer.ggml.pre", "qwen2").texts("tokenizer.ggml.merges", {"ab"});
  }, {"tokenizer.ggml.merges", "a space between"});
  refused([&](GgufWriter& w) {
    with_tokens(w, "llama").array_of<float>("tokenizer.ggml.scores", GgufType::kF32, {0, 1, 2});
  }, {"tokenizer.ggml.tokens", "a token for every byte"});
  refused([&](GgufWriter& w) {
    with_tokens(w, "llama").array_of<float>("tokenizer.ggml.scores", GgufType::kF32, {0, NAN, 2});
  }, {"tokenizer.ggml.scores", "finite"});
  refused([](GgufWriter& w) { w.texts("tokenizer.ggml.tokens", {std::string(1025, 'x')}); }, {"1024 bytes", "token 0"});
  refused([&](GgufWriter& w) { with_tokens(w, "llama"); }, {"expected tokenizer.ggml.scores"});
  refused([&](GgufWriter& w) {
    with_tokens(w, "llama").array_of<float>("tokenizer.ggml.scores", GgufType::kF32, {0, 1});
  }, {"tokenizer.ggml.scores", "as many as there are tokens, 3"});
  refused([&](GgufWriter& w) {
    with_tokens(w, "llama").array_of<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1});
  }, {"tokenizer.ggml.token_type", "as many as there are tokens, 3"});
  refused([](GgufWriter& w) { w.texts("tokenizer.ggml.tokens", {"\xff"}); }, {"UTF-8", "token 0"});
  refused([](GgufWriter& w) { w.texts("tokenizer.ggml.tokens", {}); }, {"tokenizer.ggml.tokens", "tokens"});
}

// What is said by a model's own tokenizer.json, and by names and types only in a GGUF file.
class GgufIds : public ::testing::Test {
 protected:
  using Ids = std::vector<int32_t>;
  Tokenizer byte_level(const char* architecture, const char* pre, const std::vector<std::string>& tokens,
                       const std::vector<int32_t>& types, const std::vector<std::string>& merges) {
    GgufWriter w;
    w.text("general.architecture", architecture).text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", pre);
    w.texts("tokenizer.ggml.tokens", tokens).texts("tokenizer.ggml.merges", merges);
    w.array_of<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, types);
    w.u32("tokenizer.ggml.bos_token_id", ~0u).flag("tokenizer.ggml.add_bos_token", true);  // none
    return Tokenizer::load(dir_.write("x.gguf", w.file()).string());
  }
  // SentencePiece's: unknown, begin, end, the bytes; then these.
  Tokenizer pieces(const std::vector<std::string>& more, const std::vector<int32_t>& types_of_more) {
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t> types = {2, 3, 3};
    for (int byte = 0; byte < 256; ++byte) {
      tokens.push_back(fmt::format("<0x{:02X}>", byte));
      types.push_back(6);
    }
    tokens.insert(tokens.end(), more.begin(), more.end());
    types.insert(types.end(), types_of_more.begin(), types_of_more.end());
    std::vector<float> scores;
    for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(-static_cast<float>(i));
    GgufWriter w;
    w.text("general.architecture", "llama").text("tokenizer.ggml.model", "llama");
    w.texts("tokenizer.ggml.tokens", tokens).array_of<float>("tokenizer.ggml.scores", GgufType::kF32, scores);
    w.array_of<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, types);
    return Tokenizer::load(dir_.write("y.gguf", w.file()).string());
  }
  TempDir dir_;
};

TEST_F(GgufIds, WordsOfMergesMayBeAddedTokens) {
  const Tokenizer tokenizer = byte_level("llama", "dbrx", {"a", "b", "ab", "c", "abc"}, {1, 1, 4, 1, 1}, {"a b", "ab c"});
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{2}));
  expect_error([&] { tokenizer.encode("d"); }, {"byte"});  // which this vocabulary lacks
}

TEST_F(GgufIds, Phi4TokensTakeTheSpaceAround) {
  const std::vector<std::string> tokens = {"a", "\u0120", "<|im_end|>", "<tool>"};
  const std::vector<int32_t> types = {1, 1, 3, 4};
  EXPECT_EQ(byte_level("phi3", "dbrx", tokens, types, {}).encode("a <|im_end|> a <tool> a"), (Ids{0, 2, 0, 1, 3, 1, 0}));
  EXPECT_EQ(byte_level("llama", "dbrx", tokens, types, {}).encode("a <|im_end|> a"), (Ids{0, 1, 2, 1, 0}));
}

TEST_F(GgufIds, GlmBeginsTextsWithItsTokens) {
  const Tokenizer glm = byte_level("glm4", "glm4", {"a", "[gMASK]", "<sop>"}, {1, 3, 3}, {});
  EXPECT_EQ(glm.encode("a"), (Ids{1, 2, 0}));
}

TEST_F(GgufIds, SentencePieceBeginsWithSpaces) {
  const std::vector<std::string> words = {"\u2581", "a", "\u2581a"};
  // Llama 2, and Mistral up to v0.2: behind every special token.
  const Tokenizer old = pieces(words, {1, 1, 1});
  EXPECT_EQ(old.encode("a</s>a"), (Ids{1, 261, 2, 261}));  // a begin by its usual id
  EXPECT_EQ(old.encode("<unk>"), (Ids{1, 0}));
  // Mistral since v0.3.
  std::vector<std::string> more = words;
  more.push_back("[INST]");
  const Tokenizer later = pieces(more, {1, 1, 1, 3});
  EXPECT_EQ(later.encode("a[INST] a"), (Ids{1, 261, 262, 261}));
}

TEST_F(GgufIds, EndsAreFoundByNameToo) {
  GgufWriter w = small_model();
  w.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<|im_end|>", "<|end|>"});
  w.array_of<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {2, 3, 3, 4, 1});
  const ModelConfig config = load_config(dir_.write("x.gguf", w.file()));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{2, 3}));  // <|end|> is a word here
}

}  // namespace
}  // namespace tiercel::test
