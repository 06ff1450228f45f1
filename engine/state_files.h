// Moves a store's state between its tiers and a file. Device memory goes through the backend's
// copy; what the host can read is written from where it lies, and long rows of plain memory are
// mapped from the file instead of being read.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "engine/backend.h"
#include "engine/base/check.h"
#include "engine/options.h"
#include "engine/saved_session.h"
#include "offload/kv_store.h"

namespace tiercel {

// Bytes that pass through the host's memory in one piece.
inline constexpr int64_t kStagingBytes = int64_t{16} << 20;

// Tells how many bytes are done, twenty times a second at most. Throws Error(kInterrupted) when the
// callback asks to stop.
class ByteProgress {
 public:
  ByteProgress(const char* phase, int64_t n_tokens, int64_t total, const ProgressCallback& callback)
      : phase_(phase),
        n_tokens_(n_tokens),
        total_(std::max<int64_t>(total, 1)),
        callback_(callback) {}
  void add(int64_t bytes) {
    done_ += bytes;
    report();
  }
  // What the total holds beyond what was counted (headers, padding) is done as well.
  void finish() {
    done_ = total_;
    report();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void report() {
    if (!callback_) return;
    const double fraction = static_cast<double>(done_) / static_cast<double>(total_);
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    if (seconds < next_ && done_ < total_) return;
    next_ = seconds + 0.05;
    if (!callback_({phase_, fraction,
                    static_cast<int64_t>(fraction * static_cast<double>(n_tokens_)), n_tokens_,
                    seconds})) {
      fail(ErrorKind::kInterrupted, "interrupted");
    }
  }

  const char* phase_;
  int64_t n_tokens_, total_, done_ = 0;
  const ProgressCallback& callback_;
  Clock::time_point start_ = Clock::now();
  double next_ = 0;  // seconds
};

template <Backend Device, HostTier Host>
class StateFiles {
 public:
  StateFiles(Device& device, KvStore<Device, Host>& store) : device_(device), store_(store) {}

  // The blocks of state_blocks(), in order. The store has settled.
  void write(const std::vector<StateBlock>& blocks, SessionFileWriter& file,
             ByteProgress& progress) {
    for (const StateBlock& block : blocks) {
      const auto* address = static_cast<const std::byte*>(store_.address_of(block));
      CHECK(address != nullptr, "{}", block.name());
      for (int64_t row = 0; row < block.n_rows; ++row) {
        write_row(address + row * block.stride, block.row_bytes, is_readable(block), file,
                  progress);
      }
    }
  }

  // Into a store that has adopted this state; its rows may be further apart.
  void copy_to(KvStore<Device, Host>& target, const KvState& state) {
    const std::vector<StateBlock> from = state_blocks(store_.layout(), state);
    const std::vector<StateBlock> to = state_blocks(target.layout(), state);
    CHECK(from.size() == to.size(), "{} blocks, {} blocks", from.size(), to.size());
    for (size_t i = 0; i < from.size(); ++i) {
      CHECK(from[i].part == to[i].part && from[i].row_bytes == to[i].row_bytes &&
                from[i].n_rows == to[i].n_rows,
            "{}, {}", from[i].name(), to[i].name());
      CopyParams params;
      params.source = store_.address_of(from[i]);
      params.target = target.address_of(to[i]);
      params.n_rows = from[i].n_rows;
      params.row_bytes = from[i].row_bytes;
      params.source_stride = from[i].stride;
      params.target_stride = to[i].stride;
      copy(device_, params);
    }
    device_.finish();
  }

  // Throws Error when a block is missing, has another size, or names what does not exist. Changes
  // nothing.
  void check(const std::vector<StateBlock>& blocks, const SessionFile& file) const {
    for (const StateBlock& block : blocks) {
      const FileBlock* from = file.find(block.name());
      if (from == nullptr) fail("{}: block '{}' is missing", file.path(), block.name());
      const bool fits =
          from->n_rows == block.n_rows && (is_window(block) ? from->row_bytes >= block.row_bytes
                                                            : from->row_bytes == block.row_bytes);
      if (!fits) {
        fail("{}: block '{}': expected {} rows of {} bytes, found {} of {}", file.path(),
             block.name(), block.n_rows, block.row_bytes, from->n_rows, from->row_bytes);
      }
      if (block.high > block.low) check_ints(block, *from, file);
    }
    for (const StateBlock& block : blocks) {
      if (block.part == StatePart::kSlotOrder) check_order(block, file);
      if (block.part == StatePart::kChunkOfSlot) check_slots(block, file);
    }
  }

  // After check(): cannot fail any more but for want of memory.
  void read(const std::vector<StateBlock>& blocks, const SessionFile& file,
            ByteProgress& progress) {
    for (const StateBlock& block : blocks) {
      const FileBlock& from = *file.find(block.name());
      auto* address = static_cast<std::byte*>(store_.address_of(block));
      CHECK(address != nullptr, "{}", block.name());
      for (int64_t row = 0; row < block.n_rows; ++row) {
        // Rows that have left the window lie in front, and may be left out.
        const std::span<const std::byte> bytes =
            file.row(from, row).last(static_cast<size_t>(block.row_bytes));
        read_row(bytes, address + row * block.stride, block, from, row, file);
        progress.add(block.row_bytes);
      }
    }
    device_.finish();
  }

 private:
  static bool is_window(const StateBlock& block) {
    return block.part == StatePart::kRecentKeys || block.part == StatePart::kRecentValues;
  }
  bool is_readable(const StateBlock& block) const {
    return Device::kHostReadable || store_.on_host_tier(block);
  }

  void write_row(const std::byte* row, int64_t bytes, bool readable, SessionFileWriter& file,
                 ByteProgress& progress) {
    for (int64_t at = 0; at < bytes; at += kStagingBytes) {
      const int64_t n = std::min(kStagingBytes, bytes - at);
      const std::byte* piece = row + at;
      if (!readable) {
        staging_.resize(static_cast<size_t>(std::min(kStagingBytes, bytes)));
        copy_block(device_, piece, staging_.data(), n);
        device_.finish();
        piece = staging_.data();
      }
      file.append({piece, static_cast<size_t>(n)});
      progress.add(n);
    }
  }

  void read_row(std::span<const std::byte> bytes, std::byte* target, const StateBlock& block,
                const FileBlock& from, int64_t row, const SessionFile& file) {
    if constexpr (Maps<Device>) {
      const bool whole = from.row_bytes == block.row_bytes && from.row_bytes >= kLongRow;
      const bool aligned = block.stride % kSessionPage == 0 &&
                           reinterpret_cast<uintptr_t>(target) % kSessionPage == 0;
      if (whole && aligned && block.low == block.high) {
        map_file(device_, target, from.row_stride(), file.descriptor(),
                 from.offset + row * from.row_stride());
        return;
      }
    }
    if (is_readable(block)) {
      std::memcpy(target, bytes.data(), bytes.size());
    } else {
      copy_block(device_, bytes.data(), target, static_cast<int64_t>(bytes.size()));
    }
  }

  static void check_ints(const StateBlock& block, const FileBlock& from, const SessionFile& file) {
    for (int64_t row = 0; row < from.n_rows; ++row) {
      const std::span<const std::byte> bytes = file.row(from, row);
      for (size_t at = 0; at + sizeof(int32_t) <= bytes.size(); at += sizeof(int32_t)) {
        int32_t value = 0;
        std::memcpy(&value, bytes.data() + at, sizeof value);
        if (value < block.low || value >= block.high) {
          fail("{}: block '{}': expected numbers from {} to {}, found {}", file.path(),
               block.name(), block.low, block.high - 1, value);
        }
      }
    }
  }

  static std::vector<int32_t> ints_of(const SessionFile& file, const FileBlock& from, int64_t row) {
    const std::span<const std::byte> bytes = file.row(from, row);
    std::vector<int32_t> ints(bytes.size() / sizeof(int32_t));
    std::memcpy(ints.data(), bytes.data(), ints.size() * sizeof(int32_t));
    return ints;
  }

  // Every slot has one place in the order in which slots are given away.
  static void check_order(const StateBlock& block, const SessionFile& file) {
    for (int64_t row = 0; row < block.n_rows; ++row) {
      std::vector<int32_t> order = ints_of(file, *file.find(block.name()), row);
      std::sort(order.begin(), order.end());
      const auto twice = std::adjacent_find(order.begin(), order.end());
      if (twice == order.end()) continue;
      fail("{}: block '{}': expected every slot once, found {} twice", file.path(), block.name(),
           *twice);
    }
  }

  // A slot holds the chunk that says it is in that slot.
  void check_slots(const StateBlock& block, const SessionFile& file) const {
    StateBlock inverse = block;
    inverse.part = StatePart::kSlotOfChunk;
    const FileBlock* slots = file.find(inverse.name());
    for (int64_t row = 0; row < block.n_rows; ++row) {
      const std::vector<int32_t> chunk_of = ints_of(file, *file.find(block.name()), row);
      const std::vector<int32_t> slot_of =
          slots != nullptr ? ints_of(file, *slots, row) : std::vector<int32_t>();
      int64_t n_cached = 0;
      for (size_t slot = 0; slot < chunk_of.size(); ++slot) {
        if (chunk_of[slot] < 0) continue;
        ++n_cached;
        const auto chunk = static_cast<size_t>(chunk_of[slot]);
        if (chunk < slot_of.size() && slot_of[chunk] == static_cast<int32_t>(slot)) continue;
        fail("{}: block '{}': expected chunk {} in slot {}, found it elsewhere", file.path(),
             block.name(), chunk, slot);
      }
      const int64_t n_placed =
          std::count_if(slot_of.begin(), slot_of.end(), [](int32_t slot) { return slot >= 0; });
      if (n_placed == n_cached) continue;
      fail("{}: block '{}': expected {} chunks in slots, as in '{}', found {}", file.path(),
           inverse.name(), n_cached, block.name(), n_placed);
    }
  }

  Device& device_;
  KvStore<Device, Host>& store_;
  std::vector<std::byte> staging_;
};

}  // namespace tiercel
