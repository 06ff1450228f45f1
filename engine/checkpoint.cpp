#include "engine/checkpoint.h"

#include <algorithm>
#include <map>
#include <optional>

#include "engine/base/check.h"
#include "engine/json.h"

namespace tiercel {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{100} << 20;

// A shard's name comes from a downloaded file: it may name a neighbour of that file and nothing
// else.
bool is_plain_file_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".safetensors";
  return name.size() > kSuffix.size() && name.size() <= 255 && name.ends_with(kSuffix) &&
         !name.starts_with('.') && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

// What to do when there are no safetensors depends on what there is instead.
std::string advice_without_weights(const std::filesystem::path& directory) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt")) {
      return fmt::format("it holds {}: convert it with save_pretrained(safe_serialization=True)",
                         printable(name));
    }
  }
  if (const std::string name = gguf_file_in(directory); !name.empty()) {
    return fmt::format("it holds {}: give -m that file", printable(name));
  }
  return "download the whole model repository";
}

}  // namespace

std::vector<std::pair<std::string, std::string>> parse_checkpoint_index(std::string_view text,
                                                                        const std::string& file) {
  const nlohmann::json document = parse_json(text, file, {.max_bytes = kMaxIndexBytes});
  const JsonNode root(document, file);
  const JsonNode map = root.at("weight_map");
  map.expect_object();
  if (map.raw().empty()) map.unexpected("at least one tensor");

  std::vector<std::pair<std::string, std::string>> result;
  result.reserve(map.raw().size());
  for (const auto& [tensor, value] : map.raw().items()) {
    const JsonNode shard(value, file, "weight_map." + printable(tensor));
    if (!is_plain_file_name(shard.text())) {
      shard.unexpected("a plain file name that ends in .safetensors",
                       "shards lie beside their index; paths are refused");
    }
    result.emplace_back(tensor, shard.text());
  }
  std::sort(result.begin(), result.end());
  return result;
}

bool has_weights(const std::filesystem::path& directory) {
  std::error_code ignored;
  return std::filesystem::exists(directory / kSingleFile, ignored) ||
         std::filesystem::exists(directory / kIndexFile, ignored);
}

void Checkpoint::add(const TensorInfo& tensor, const std::string& file) {
  where_.emplace(tensor.name, Place{&tensor, &file});
  total_bytes_ += tensor.bytes;
}

Checkpoint Checkpoint::open_gguf(const std::filesystem::path& file) {
  Checkpoint checkpoint;
  checkpoint.name_ = file.string();
  checkpoint.gguf_ = GgufModel::open(file);
  for (const GgufModel::Tensor& tensor : checkpoint.gguf_->tensors()) {
    checkpoint.add(tensor.info, checkpoint.gguf_->files()[tensor.file].name());
  }
  if (checkpoint.where_.size() != checkpoint.gguf_->tensors().size()) {
    fail("{}: two of its tensors are the same one of the model; convert the original model again", file.string());
  }
  return checkpoint;
}

Checkpoint Checkpoint::open(const std::filesystem::path& directory) {
  if (is_gguf_file(directory)) return open_gguf(directory);
  std::error_code ignored, error;
  Checkpoint checkpoint;
  checkpoint.name_ = directory.string();
  if (!std::filesystem::exists(directory, error)) {
    if (error) fail("{}: cannot be opened: {}", directory.string(), error.message());
    fail("{}: expected a model directory or a GGUF file, found nothing there", directory.string());
  }
  if (!std::filesystem::is_directory(directory, ignored)) {
    fail("{}: expected a model directory or a GGUF file, found another file; give the directory that holds "
         "config.json",
         directory.string());
  }
  const std::filesystem::path single = directory / kSingleFile;
  const std::filesystem::path index = directory / kIndexFile;

  if (std::filesystem::exists(single, ignored)) {
    checkpoint.files_.push_back(SafetensorsFile::open(single));
    const SafetensorsFile& file = checkpoint.files_[0];
    for (const TensorInfo& tensor : file.tensors()) checkpoint.add(tensor, file.name());
    return checkpoint;
  }
  if (!std::filesystem::exists(index, ignored)) {
    fail("{}: expected {} or {}, found neither; {}", directory.string(), kSingleFile, kIndexFile,
         advice_without_weights(directory));
  }

  const auto map = parse_checkpoint_index(read_text_file(index, kMaxIndexBytes), index.string());
  std::map<std::string, size_t> shards;  // in the order of their names
  for (const auto& [tensor, shard] : map) shards.emplace(shard, 0);
  for (auto& [shard, position] : shards) {
    if (!std::filesystem::exists(directory / shard, ignored)) {
      fail("{}: expected the shard {} beside it, found no such file; download it", index.string(),
           printable(shard));
    }
    position = checkpoint.files_.size();
    checkpoint.files_.push_back(SafetensorsFile::open(directory / shard));
  }

  std::vector<std::unordered_map<std::string_view, const TensorInfo*>> contents;
  for (const SafetensorsFile& file : checkpoint.files_) {
    auto& names = contents.emplace_back();
    for (const TensorInfo& tensor : file.tensors()) names.emplace(tensor.name, &tensor);
  }
  for (const auto& [tensor, shard] : map) {
    const size_t position = shards.at(shard);
    const auto entry = contents[position].find(tensor);
    if (entry == contents[position].end()) {
      fail("{}: expected the tensor {}, as {} says, found no such tensor",
           checkpoint.files_[position].name(), printable(tensor), kIndexFile);
    }
    checkpoint.add(*entry->second, checkpoint.files_[position].name());
  }
  return checkpoint;
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const TensorInfo* tensor = find_any(name);
  if (tensor != nullptr && !tensor->supported) {
    fail("{}: tensor {}: expected dtype BF16, F16, F32 or F8_E4M3, found {}; quantised weights are supported where "
         "config.json says how (gptq, awq, compressed-tensors): use such a checkpoint, or the original one",
         file_of(name), printable(tensor->label()), tensor->stored_dtype);
  }
  return tensor;
}

const TensorInfo* Checkpoint::find_any(std::string_view name) const {
  const auto entry = where_.find(name);
  return entry == where_.end() ? nullptr : entry->second.tensor;
}

const TensorInfo& Checkpoint::tensor(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) {
    fail("{}: expected a tensor {}{}, found none among {} tensors; {}", name_, name,
         gguf_ ? " (Hugging Face's name of it)" : "", where_.size(),
         gguf_ ? "the file is no whole model: fetch it again" : "config.json may belong to another model");
  }
  return *info;
}

const TensorInfo& Checkpoint::require(std::string_view name, std::span<const int64_t> shape) const {
  const TensorInfo& info = tensor(name);
  if (!std::equal(shape.begin(), shape.end(), info.shape.begin(), info.shape.end())) {
    fail("{}: tensor {}: expected shape {}, found {}; {} {} not describe these weights", file_of(name),
         printable(info.label()), to_string(shape), to_string(info.shape), description(), gguf_ ? "do" : "does");
  }
  return info;
}

std::vector<std::string_view> Checkpoint::names() const {
  std::vector<std::string_view> result;
  result.reserve(where_.size());
  for (const auto& [name, position] : where_) result.push_back(name);
  std::sort(result.begin(), result.end());
  return result;
}

const std::string& Checkpoint::file_of(std::string_view name) const {
  const auto entry = where_.find(name);
  CHECK(entry != where_.end(), "tensor {}", name);
  return *entry->second.file;
}

void Checkpoint::check_finite(const TensorInfo& tensor, int64_t first) const {
  const std::optional<int64_t> bad = find_non_finite(tensor);
  if (!bad) return;
  fail("{}: tensor {}: element {} is NaN or infinite; the checkpoint is damaged or was not fully written, fetch it "
       "again",
       file_of(tensor.name), tensor.label(), first + *bad);
}

void Checkpoint::will_need() const {
  if (gguf_) {
    for (const GgufFile& file : gguf_->files()) file.mapping().will_need(0, file.mapping().bytes().size());
  }
  for (const SafetensorsFile& file : files_) {
    file.mapping().will_need(0, file.mapping().bytes().size());
  }
}

}  // namespace tiercel
