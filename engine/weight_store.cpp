#include "engine/weight_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <unordered_set>

#include "cpu/synthetic.h"
#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/gguf/block_format.h"
#include "engine/weight_codes.h"

namespace tiercel {
namespace {

// Below this a copy into huge pages costs less than it saves in address translation.
constexpr int64_t kCopyBelow = int64_t{2} << 30;

constexpr int64_t aligned(int64_t elements) { return (elements + 31) / 32 * 32; }

// Before anything is read.
void check_room(const std::string& model, int64_t bytes, bool coded) {
  const int64_t available = cpu::memory_of_this_process_bytes();
  if (bytes <= available) return;
  fail(ErrorKind::kDoesNotFit, "{}: its weights take {} of memory{}, this machine has {} left{}", model,
       format_bytes(bytes), coded ? "" : " as bf16", format_bytes(available),
       coded ? "" : "; --weight-codec int8 or int4 makes them smaller, and rounds them");
}

// What quantised checkpoints say of activations and of the KV cache, which are bf16 here, or in a codec of
// the engine's own.
bool is_scale_of_activations(std::string_view tensor) {
  for (const char* end : {".input_scale", ".input_zero_point", ".output_scale", ".q_scale", ".k_scale", ".v_scale",
                          ".k_zero_point", ".v_zero_point"}) {
    if (tensor.ends_with(end)) return true;
  }
  return false;
}

// Some tools write a bias of zeros for every matrix that they quantise.
bool is_zero(const TensorInfo& tensor) {
  return std::all_of(tensor.data, tensor.data + tensor.bytes, [](std::byte b) { return b == std::byte{}; });
}

}  // namespace

void learn_from_checkpoint(ModelConfig& config, const std::string& directory) {
  if (config.coded_modules != nullptr) return;  // of a GGUF file, whose metadata say all
  const Checkpoint checkpoint = Checkpoint::open(directory);
  config.eviction_head = checkpoint.find("model.layers.0.self_attn.delta.weight") != nullptr;
  if (!config.has_codes()) return;
  const auto has_codes_of = [&](std::string_view module) {
    const std::string weight = std::string(module) + ".weight";
    if (config.int_weights) return IntTensor::is_in(checkpoint, weight, *config.int_weights);
    const TensorInfo* tensor = checkpoint.find_any(weight);
    return tensor != nullptr && tensor->stored_dtype == "F8_E4M3";
  };
  const WeightCode code = config.fp8 ? WeightCode::kE4M3 : config.int_weights->code();
  const int64_t group = config.fp8 ? config.fp8->block_columns : config.int_weights->group;
  auto modules = std::make_shared<std::vector<CodedModule>>();
  for (const std::string_view name : checkpoint.names()) {
    const size_t dot = name.rfind('.');
    if (dot == name.npos) continue;
    const std::string_view module = name.substr(0, dot);
    const bool known = !modules->empty() && modules->back().name == module;
    if (!known && has_codes_of(module)) modules->push_back({std::string(module), code, group});
  }
  std::ranges::sort(*modules, {}, &CodedModule::name);
  config.coded_modules = std::move(modules);
}

void fill_random_codes(cpu::Queue& queue, const RandomParams& fill, const WeightTensor& tensor, bf16* out) {
  const int64_t n_rows = tensor.shape[0], k = tensor.shape[1];
  const int64_t at_once = std::max<int64_t>((int64_t{4} << 20) / k, 1);
  std::vector<bf16> values(static_cast<size_t>(std::min(at_once, n_rows) * k));
  for (int64_t first = 0; first < n_rows; first += at_once) {
    const int64_t n = std::min(at_once, n_rows - first);
    RandomParams some = fill;
    some.out = values.data();
    some.n = n * k;
    some.seed += kSplitmixStep * static_cast<uint64_t>(first * k);
    cpu::fill_random(queue, some);
    queue.for_each(n, [&](int64_t row, cpu::Worker&) {
      auto* const target = reinterpret_cast<std::byte*>(out) + (first + row) * tensor.codec.row_bytes(k);
      quantise_row({values.data() + row * k, static_cast<size_t>(k)}, tensor.codec, target);
    });
  }
}

struct WeightStore::Wanted {
  const bf16** target;
  TensorInfo tensor;  // the rows that are ours
  int64_t first_row;  // within the checkpoint's tensor
  bool is_moved;      // its rows come in another order
  std::shared_ptr<const Fp8Tensor> scaled = {};  // the checkpoint's tensor of 8-bit floats
  std::string scale_name = {};           // of its scales
  std::shared_ptr<const IntTensor> coded = {};  // its integers, of which `tensor` has name and shape only
  bool stays_coded = false;                     // integers, floats or blocks, as they are
  WeightCodec codec = {};                       // as it is kept
  int64_t row_elements() const { return tensor.n_elements() / tensor.shape[0]; }
  // Of memory.
  int64_t kept_row_elements() const {
    return codec.is_coded() ? codec.row_bytes(row_elements()) / 2 : row_elements();
  }
  int64_t kept_elements() const { return tensor.shape[0] * kept_row_elements(); }
  bool is_as_wanted() const {
    return !is_moved && !coded && !codec.is_coded() && tensor.dtype == DType::kBf16 &&
           reinterpret_cast<uintptr_t>(tensor.data) % alignof(bf16) == 0;
  }
  void wont_be_needed() const {
    if (coded == nullptr) return wont_need(tensor);
    for (const TensorInfo* part : coded->tensors()) wont_need(*part);
  }
};

WeightStore::WeightStore(std::optional<Checkpoint> checkpoint, cpu::Queue& queue)
    : checkpoint_(std::move(checkpoint)), queue_(queue) {}

WeightStore::~WeightStore() { cpu::unmap_pages(block_, static_cast<size_t>(block_bytes_)); }

std::unique_ptr<WeightStore> WeightStore::open(const std::string& directory, const ModelConfig& config,
                                               cpu::Queue& queue) {
  std::unique_ptr<WeightStore> store(new WeightStore(Checkpoint::open(directory), queue));
  store->bytes_ = weight_bytes(config);
  store->collect(config);
  CHECK(store->n_parameters_ == parameter_count(config), "{} parameters, {} by configuration",
        store->n_parameters_, parameter_count(config));
  return store;
}

std::unique_ptr<WeightStore> WeightStore::load(const std::string& directory,
                                               const ModelConfig& config, cpu::Queue& queue) {
  std::unique_ptr<WeightStore> store = open(directory, config, queue);
  const bool coded = kept_weights(config).coded;
  check_room(directory, store->bytes_, coded);
  store->checkpoint_->will_need();
  store->check_tied_head(config);  // which reads both
  store->place(coded);
  if (config.tie_word_embeddings) store->weights_.head = store->weights_.embedding;
  store->wanted_.clear();
  // Pages of the mapping are resident memory too; nothing points into them when all was copied.
  if (!store->in_place_) store->checkpoint_.reset();
  return store;
}

std::unique_ptr<WeightStore> WeightStore::random(const ModelConfig& config, cpu::Queue& queue) {
  std::unique_ptr<WeightStore> store(new WeightStore(std::nullopt, queue));
  const std::vector<WeightTensor> tensors = weight_tensors(config, store->weights_);
  int64_t elements = 0;
  for (const WeightTensor& tensor : tensors) {
    store->n_parameters_ += tensor.n_elements();
    elements += aligned(tensor.kept_elements());
  }
  check_room("--synthetic", elements * static_cast<int64_t>(sizeof(bf16)), kept_weights(config).coded);
  store->bytes_ = weight_bytes(config);
  store->block_bytes_ = elements * static_cast<int64_t>(sizeof(bf16));
  store->block_ = static_cast<bf16*>(cpu::map_pages(static_cast<size_t>(store->block_bytes_)));
  bf16* next = store->block_;
  for (const WeightTensor& tensor : tensors) {
    *tensor.target = next;
    next += aligned(tensor.kept_elements());
  }
  const std::vector<RandomParams> fills = synthetic_weights(tensors);
  for (size_t i = 0; i < fills.size(); ++i) {
    if (tensors[i].codec.is_coded()) {
      fill_random_codes(queue, fills[i], tensors[i], fills[i].out);
    } else {
      cpu::fill_random(queue, fills[i]);
    }
  }
  if (config.tie_word_embeddings) store->weights_.head = store->weights_.embedding;
  return store;
}

void WeightStore::collect(const ModelConfig& config) {
  channel_order_ = rope_channel_order(config.rope, config.head_dim);
  for (const WeightTensor& wanted : weight_tensors(config, weights_)) {
    collect_tensor(wanted, config);
    n_parameters_ += wanted.n_elements();
  }
  check_nothing_ignored(config);
}

void WeightStore::collect_tensor(const WeightTensor& wanted, const ModelConfig& config) {
  std::vector<int64_t> stored = wanted.shape;
  if (wanted.stored_rows > 0) stored[0] = wanted.stored_rows;
  const bool is_moved = wanted.turns && !channel_order_.empty();
  const bool is_coded = config.int_weights && stored.size() == 2 && wanted.name.ends_with(".weight") &&
                        IntTensor::is_in(*checkpoint_, wanted.name, *config.int_weights);
  if (is_coded) {
    // Parts of one are behind each other.
    const bool known = wanted.first_row > 0 && wanted_.back().coded && wanted_.back().tensor.name == wanted.name;
    const WeightCodec codec = config.int_weights->codec(stored[1]);
    TensorInfo described;
    described.name = wanted.name;
    described.shape = wanted.shape;
    wanted_.push_back({.target = wanted.target,
                       .tensor = std::move(described),
                       .first_row = wanted.first_row,
                       .is_moved = is_moved,
                       .coded = known ? wanted_.back().coded
                                      : std::make_shared<const IntTensor>(*checkpoint_, wanted.name, stored[0],
                                                                          stored[1], *config.int_weights),
                       .stays_coded = wanted.codec.is_coded() && wanted.codec == codec,
                       .codec = wanted.codec});
    return;
  }
  const TensorInfo* found = checkpoint_->find_any(wanted.name);
  const bool in_blocks = found != nullptr && found->blocks != nullptr && found->shape == stored;
  const TensorInfo& whole = in_blocks ? *found : checkpoint_->require(wanted.name, stored);
  Wanted& ours = wanted_.emplace_back(Wanted{.target = wanted.target,
                                             .tensor = rows_of(whole, wanted.first_row, wanted.shape[0]),
                                             .first_row = wanted.first_row,
                                             .is_moved = is_moved,
                                             .codec = wanted.codec});
  if (in_blocks) {
    ours.stays_coded = wanted.codec.is_coded() && wanted.codec == whole.blocks->codec(stored[1]);
  } else if (whole.dtype == DType::kF8E4M3) {
    const TensorInfo& scales = scales_of(whole, config);
    ours.scaled = std::make_shared<const Fp8Tensor>(whole, scales, *config.fp8, checkpoint_->file_of(scales.name));
    ours.stays_coded = wanted.codec.is_coded() && wanted.codec == config.fp8->codec(stored[1]);
    ours.scale_name = scales.name;
    checkpoint_->check_finite(scales);
  }
}

// A head beside a tied embedding is a copy of it, or the model was changed and its configuration not.
void WeightStore::check_tied_head(const ModelConfig& config) const {
  const TensorInfo* head = config.tie_word_embeddings ? checkpoint_->find("lm_head.weight") : nullptr;
  if (head == nullptr) return;
  const TensorInfo& embedding = checkpoint_->tensor("model.embed_tokens.weight");
  const bool same = head->dtype == embedding.dtype && head->shape == embedding.shape &&
                    std::memcmp(head->data, embedding.data, head->bytes) == 0;
  wont_need(*head);
  if (same) return;
  fail("{}: tensor lm_head.weight differs from model.embed_tokens.weight, though config.json has "
       "tie_word_embeddings true, with which it would be ignored; set that to false to use it",
       checkpoint_->file_of(head->name));
}

const TensorInfo& WeightStore::scales_of(const TensorInfo& codes, const ModelConfig& config) const {
  const std::string& file = checkpoint_->file_of(codes.name);
  if (!config.fp8 || codes.shape.size() != 2) {
    fail("{}: tensor {}: expected dtype BF16, F16 or F32, found {}{}", file, codes.name, codes.stored_dtype,
         config.fp8 ? ", which is only supported of matrices"
                    : "; config.json has no quantization_config that says what it means");
  }
  for (const char* suffix : {"_scale_inv", "_scale"}) {
    if (const TensorInfo* scales = checkpoint_->find(codes.name + suffix)) return *scales;
  }
  fail("{}: tensor {} is {}, and the checkpoint has no {}_scale_inv or {}_scale beside it; fetch it again",
       file, codes.name, codes.stored_dtype, codes.name, codes.name);
}

// A layer's tensor that nobody reads (a bias that the configuration denies, scales of a quantized
// matrix, a head that biases attention) is a part of the model that would silently be left out.
void WeightStore::check_nothing_ignored(const ModelConfig& config) const {
  std::unordered_set<std::string_view> used;
  for (const Wanted& wanted : wanted_) {
    used.insert(wanted.tensor.name);
    used.insert(wanted.scale_name);
    if (!wanted.coded) continue;
    for (const TensorInfo* part : wanted.coded->tensors()) used.insert(part->name);
  }
  for (const std::string_view name : checkpoint_->names()) {
    if (!name.starts_with("model.layers.") || used.contains(name)) continue;
    if (name.ends_with(".rotary_emb.inv_freq")) continue;  // computed; old checkpoints store it
    if (config.has_codes() && is_scale_of_activations(name)) continue;
    if (config.int_weights && name.ends_with(".bias") && is_zero(*checkpoint_->find_any(name))) continue;
    fail("{}: tensor {} is no part of a {} of {} layers as {} describe{} it, and would be ignored; check that, or "
         "convert the model to the plain architecture",
         checkpoint_->file_of(name), checkpoint_->find_any(name)->label(), name_of(config.architecture), config.n_layers,
         checkpoint_->description(), config.block_formats.empty() && config.coded_modules == nullptr ? "s" : "");
  }
}

// As they are kept, whatever they are in the checkpoint: a row at a time.
int64_t WeightStore::copy_coded_rows(const Wanted& wanted, bf16* out) const {
  const auto d = static_cast<int64_t>(channel_order_.size());
  const int64_t n_rows = wanted.tensor.shape[0], k = wanted.row_elements();
  // Of codes that lie in columns: as many rows as share cache lines; where they change places, a head's.
  const int64_t unit = wanted.is_moved ? d : 128;
  std::vector<uint8_t> codes(wanted.coded ? static_cast<size_t>(unit * k) : 0);
  std::vector<bf16> values(static_cast<size_t>(k));
  Wanted one = wanted;  // of other tensors than codes: a row as bf16
  one.is_moved = false;
  one.codec = {};
  int64_t overflowed = 0;
  for (int64_t row = 0; row < n_rows; ++row, out += wanted.kept_row_elements()) {
    const int64_t in_unit = row % unit;
    const int64_t source = wanted.is_moved ? channel_order_[static_cast<size_t>(in_unit)] : in_unit;
    const int64_t at = wanted.first_row + row - in_unit + source;
    auto* kept = reinterpret_cast<std::byte*>(out);
    if (wanted.coded) {
      if (in_unit == 0) wanted.coded->codes(at - source, std::min(unit, n_rows - row), codes.data());
      const uint8_t* of_row = codes.data() + source * k;
      if (wanted.stays_coded) {
        wanted.coded->pack(at, of_row, wanted.codec, kept);
        continue;
      }
      wanted.coded->decode(at, of_row, values.data());
    } else if (wanted.stays_coded && wanted.scaled) {
      overflowed += wanted.scaled->pack(at, wanted.codec, kept);
      continue;
    } else if (wanted.stays_coded) {
      const BlockFormat& blocks = *wanted.tensor.blocks;
      const int64_t row_in_file = row - in_unit + source;
      overflowed += pack_row(blocks, wanted.tensor.data + row_in_file * blocks.row_bytes(k), k, wanted.codec, kept);
      continue;
    } else {
      one.tensor = rows_of(wanted.tensor, row - in_unit + source, 1);
      one.first_row = at;
      overflowed += copy_rows(one, values.data());
    }
    if (wanted.codec.is_coded()) {
      quantise_row(values, wanted.codec, kept);
    } else {
      std::copy(values.begin(), values.end(), out);
    }
  }
  return overflowed;
}

// As to_bf16: decoded, and with the channels of heads in the engine's order.
int64_t WeightStore::copy_rows(const Wanted& wanted, bf16* out) const {
  if (wanted.coded || wanted.codec.is_coded()) return copy_coded_rows(wanted, out);
  const BlockFormat* const blocks = wanted.tensor.blocks;
  if (!wanted.is_moved && !wanted.scaled && blocks == nullptr) return to_bf16(wanted.tensor, out);
  const int64_t n_rows = wanted.tensor.shape[0], row_elements = wanted.row_elements();
  const auto d = static_cast<int64_t>(channel_order_.size());
  TensorInfo row = rows_of(wanted.tensor, 0, 1);
  int64_t overflowed = 0;
  for (int64_t r = 0; r < n_rows; ++r, out += row_elements) {
    const int64_t source =
        wanted.is_moved ? r / d * d + channel_order_[static_cast<size_t>(r % d)] : r;
    if (wanted.scaled) {
      overflowed += wanted.scaled->decode_row(wanted.first_row + source, out);
    } else if (blocks != nullptr) {
      overflowed += decode_row(*blocks, wanted.tensor.data + source * blocks->row_bytes(row_elements), row_elements, out);
    } else {
      row.data = wanted.tensor.data + static_cast<uint64_t>(source) * row.bytes;
      overflowed += to_bf16(row, out);
    }
  }
  return overflowed;
}

// Checks tensors first .. and copies those that have a place in `copies`: on all threads, some rows at a time. The
// first bad one in their order is the one reported.
void WeightStore::read(size_t first, std::span<bf16* const> copies) const {
  constexpr int64_t kElements = int64_t{4} << 20;  // of an item
  struct Item {
    Wanted rows;
    bf16* out;
    size_t tensor = 0;  // of copies
    bool is_bad = false;
    int64_t overflowed = 0;
  };
  std::vector<Item> items;
  std::vector<std::atomic<int64_t>> items_left(copies.size());
  for (size_t i = 0; i < copies.size(); ++i) {
    const Wanted& wanted = wanted_[first + i];
    const int64_t n_rows = wanted.tensor.shape[0], row_elements = wanted.row_elements();
    // Rows change places within a head only.
    const int64_t unit = wanted.is_moved ? static_cast<int64_t>(channel_order_.size()) : wanted.coded ? 128 : 1;
    const int64_t of_item = std::max<int64_t>(kElements / (row_elements * unit), 1) * unit;
    for (int64_t row = 0; row < n_rows; row += of_item) {
      bf16* const out = copies[i] != nullptr ? copies[i] + row * wanted.kept_row_elements() : nullptr;
      Item& item = items.emplace_back(Item{wanted, out, i});
      ++items_left[i];
      const int64_t n = std::min(of_item, n_rows - row);
      if (wanted.coded) {
        item.rows.tensor.shape[0] = n;
      } else {
        item.rows.tensor = rows_of(wanted.tensor, row, n);
      }
      item.rows.first_row += row;
    }
  }
  queue_.for_each(std::ssize(items), [&](int64_t n, cpu::Worker&) {
    Item& item = items[static_cast<size_t>(n)];
    item.is_bad = !item.rows.coded && find_non_finite(item.rows.tensor).has_value();
    if (item.is_bad || item.out == nullptr) return;
    item.overflowed = copy_rows(item.rows, item.out);
    if (!item.rows.coded) {
      wont_need(item.rows.tensor);
    } else if (--items_left[item.tensor] == 0) {
      item.rows.wont_be_needed();  // rows of it may lie across all of its pages
    }
  });
  for (const Item& item : items) {
    const TensorInfo& tensor = item.rows.tensor;
    if (item.is_bad) checkpoint_->check_finite(tensor, item.rows.first_row * item.rows.row_elements());
    if (item.overflowed > 0) {
      fail("{}: tensor {}: at least {} values are too large for bf16", checkpoint_->file_of(tensor.name),
           tensor.label(), item.overflowed);
    }
  }
}

// Points every target at its values: in place, or copied.
void WeightStore::place(bool coded) {
  const bool copy_all = bytes_ < kCopyBelow;
  std::vector<int64_t> offset(wanted_.size(), -1);
  int64_t elements = 0;
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const bool in_place = !copy_all && wanted_[i].is_as_wanted();
    in_place_ |= in_place;
    if (in_place) continue;
    offset[i] = elements;
    elements += aligned(wanted_[i].kept_elements());
  }
  check_room(checkpoint_->name(), elements * static_cast<int64_t>(sizeof(bf16)), coded);
  block_bytes_ = elements * static_cast<int64_t>(sizeof(bf16));
  block_ = static_cast<bf16*>(cpu::map_pages(static_cast<size_t>(block_bytes_)));
  std::vector<bf16*> copies(wanted_.size());
  for (size_t i = 0; i < wanted_.size(); ++i) copies[i] = offset[i] >= 0 ? block_ + offset[i] : nullptr;
  read(0, copies);
  for (size_t i = 0; i < wanted_.size(); ++i) {
    *wanted_[i].target =
        copies[i] != nullptr ? copies[i] : reinterpret_cast<const bf16*>(wanted_[i].tensor.data);
  }
}

void read_weights(const std::string& directory, const ModelConfig& config, cpu::Queue& queue, const PutWeights& put,
                  int64_t elements_at_once) {
  const std::unique_ptr<WeightStore> store = WeightStore::open(directory, config, queue);
  store->checkpoint_->will_need();
  store->check_tied_head(config);
  const std::vector<WeightStore::Wanted>& wanted = store->wanted_;
  std::unique_ptr<bf16[]> buffer;
  int64_t room = 0;
  for (size_t first = 0; first < wanted.size();) {
    size_t end = first;
    int64_t elements = 0, copied = 0;
    std::vector<int64_t> offset;
    for (; end < wanted.size(); ++end) {
      const int64_t n = aligned(wanted[end].kept_elements());
      if (end > first && elements + n > elements_at_once) break;
      elements += n;
      offset.push_back(wanted[end].is_as_wanted() ? -1 : copied);
      if (offset.back() >= 0) copied += n;
    }
    if (copied > room) {
      buffer.reset();  // before there are two
      buffer = std::make_unique_for_overwrite<bf16[]>(static_cast<size_t>(copied));
      room = copied;
    }
    std::vector<bf16*> copies;
    for (const int64_t at : offset) copies.push_back(at >= 0 ? buffer.get() + at : nullptr);
    store->read(first, copies);
    for (size_t i = first; i < end; ++i) {
      const bf16* copy = copies[i - first];
      put(i, copy != nullptr ? copy : reinterpret_cast<const bf16*>(wanted[i].tensor.data));
      wanted[i].wont_be_needed();
    }
    first = end;
  }
}

}  // namespace tiercel
