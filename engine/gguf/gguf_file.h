// One GGUF file (versions 2 and 3): a read-only mapping of it, its metadata, and the table of its tensors.
//
//   | "GGUF" | version: u32 | n tensors: u64 | n values: u64 | metadata | tensors | padding | data, padded |
//     of metadata    key: string   type: u32   value           a string: length (u64), bytes
//     of a tensor    name: string  n dimensions: u32  extents (u64, of a row first)  type: u32
//                    offset from the beginning of the data: u64
//
// Promises, as SafetensorsFile does: all of it is checked against the size of the file when it is opened, before a
// byte of data is touched. Does not know: what keys and names mean, or that a model may be several files.
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/tensor_info.h"

namespace tiercel {

enum class GgufType : uint32_t {
  kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64
};

// A value of the metadata and its place. Typed reading as JsonNode has it, and its errors: "FILE: KEY: expected ...,
// found ...".
class GgufValue {
 public:
  GgufValue(std::string_view key, const std::string& file, GgufType type, GgufType element, uint64_t n,
            std::span<const std::byte> bytes)
      : key_(key), file_(&file), type_(type), element_(element), n_(n), bytes_(bytes) {}

  // Any integer type, in the closed interval; any float type, of f32 the shortest decimal that means it, as the JSON
  // it comes from had it.
  int64_t integer(int64_t low, int64_t high) const;
  double number(double low, double high) const;
  bool boolean() const;
  // Whether it is the number 0; or 1, of a scale.
  bool is_neutral(bool scale) const;
  std::string_view text() const;
  // Arrays.
  std::vector<std::string_view> texts() const;
  std::vector<int64_t> integers(int64_t low, int64_t high) const;
  std::vector<float> floats() const;
  bool is_array() const { return type_ == GgufType::kArray; }
  size_t size() const { return static_cast<size_t>(n_); }  // of an array

  [[noreturn]] void unexpected(std::string_view what, std::string_view help = {}) const;

 private:
  std::string found() const;
  void expect_array_of(GgufType element, const char* what) const;

  std::string_view key_;
  const std::string* file_;
  GgufType type_, element_;
  uint64_t n_;
  std::span<const std::byte> bytes_;  // of the value, or of the elements
};

class GgufFile {
 public:
  struct Contents {
    std::unordered_map<std::string_view, GgufValue> metadata;  // looks into the bytes, and at the name
    std::vector<TensorInfo> tensors;                           // in the order of their data, `data` null
  };

  // Maps and checks a file. Errors: those of MappedFile and of parse_header.
  static GgufFile open(const std::filesystem::path& path);
  // Pure: what the fuzzer calls.
  //   bytes      the beginning of the file, at least all before the data
  //   file_size  bytes in the whole file; decides whether data would be out of range
  // Errors: not such a file, a version that is not supported, anything that contradicts the format or file_size.
  static Contents parse_header(std::span<const std::byte> bytes, uint64_t file_size, const std::string& name);

  // A value of the metadata. Errors of at: there is none.
  std::optional<GgufValue> find(std::string_view key) const;
  GgufValue at(std::string_view key) const;
  const std::unordered_map<std::string_view, GgufValue>& metadata() const { return contents_.metadata; }
  const std::vector<TensorInfo>& tensors() const { return contents_.tensors; }
  const std::string& name() const { return *name_; }
  const MappedFile& mapping() const { return mapping_; }

 private:
  std::unique_ptr<const std::string> name_;  // which stays where it is
  MappedFile mapping_;
  Contents contents_;
};

// Whether this is such a file by its name or its first bytes, whatever else may be wrong with it.
bool is_gguf_file(const std::filesystem::path& path);
// The name of one in this folder, by the file's name; empty: there is none.
std::string gguf_file_in(const std::filesystem::path& folder);

}  // namespace tiercel
