// One .safetensors file: a read-only mapping of it and the table of its tensors.
//
//   0        8                8 + H                                   file size
//   | H: u64 | JSON header    | tensor | tensor | ... | tensor        |
//            {"name": {"dtype": "BF16", "shape": [4, 64], "data_offsets": [begin, end)}, ...}
//                               offsets count from 8 + H; no holes, no overlaps, nothing left over
//
// Promises: the header is checked completely, against the size of the file, before a byte of data
// is touched, so that no later read can leave the mapping (a truncated file would be a SIGBUS).
// Data stays where it is: a tensor is a pointer into the mapping and is only as aligned as the file
// makes it. Does not know: directories, shards, models. Source:
// https://github.com/huggingface/safetensors, section "Format".
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/tensor_info.h"

namespace tiercel {

class SafetensorsFile {
 public:
  // Maps and checks a file. Errors: those of MappedFile and of parse_header.
  static SafetensorsFile open(const std::filesystem::path& path);

  // The tensors of a file in the order of their data, `data` null. Pure: what the fuzzer calls.
  //   bytes      the beginning of the file, at least its header (the rest need not be there)
  //   file_size  bytes in the whole file; decides whether data would be out of range
  //   name       of the file, for messages
  // Errors: anything in the header that the format forbids, or that contradicts file_size.
  static std::vector<TensorInfo> parse_header(std::span<const std::byte> bytes, uint64_t file_size,
                                              const std::string& name);

  // The tensor, of any dtype, or null when the file has none of this name.
  const TensorInfo* find(std::string_view name) const;
  // Everything in the file, in the order of the data.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::string& name() const { return name_; }
  const MappedFile& mapping() const { return mapping_; }

 private:
  std::string name_;
  MappedFile mapping_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;  // keys look into tensors_
};

}  // namespace tiercel
