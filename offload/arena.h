// Memory of one tier, under a budget.
//
// An Arena hands out zeroed blocks through its queue's allocator (pages on a CPU, device or pinned
// memory on a GPU) and refuses to exceed its budget: the tiers are real on every machine, also where
// both are the same DRAM. Blocks are taken when a session opens, some when a long text is appended; the
// decode loop takes none.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/base/check.h"

namespace tiercel {

// What a block is for; the memory table has one line for each.
enum class Purpose : uint8_t { kWeights, kKeys, kLandmarks, kSlots, kExact, kActivations, kValues };
inline constexpr int kPurposes = 7;

using PurposeBytes = std::array<int64_t, kPurposes>;

inline int64_t sum(const PurposeBytes& bytes) {
  int64_t total = 0;
  for (int64_t b : bytes) total += b;
  return total;
}

// Parts of a reserved block begin at multiples of so many bytes.
inline constexpr int64_t kReservedAlignment = 256;
// What the block has beyond them, for what aligns so many at least; activations, to the memory table.
inline constexpr int64_t kReservedSpare = 2048 * kReservedAlignment;

// Memory of a tier for as long as it lives, outside of any budget; null where nothing is wanted.
template <typename Queue>
class TierBlock {
 public:
  TierBlock(Queue& queue, int64_t bytes)
      : queue_(queue), bytes_(bytes), address_(bytes > 0 ? allocate(queue, bytes) : nullptr) {}
  ~TierBlock() {
    if (address_ != nullptr) release(queue_, address_, bytes_);
  }
  TierBlock(const TierBlock&) = delete;
  TierBlock& operator=(const TierBlock&) = delete;

  void* address() const { return address_; }
  int64_t bytes() const { return bytes_; }

 private:
  Queue& queue_;
  int64_t bytes_;
  void* address_;
};

template <typename Queue>
class Arena {
 public:
  // budget_bytes <= 0: no limit of its own.
  Arena(Queue& queue, std::string name, int64_t budget_bytes)
      : queue_(queue),
        name_(std::move(name)),
        budget_(budget_bytes > 0 ? budget_bytes : std::numeric_limits<int64_t>::max()) {}
  ~Arena() {
    for (const Block& block : blocks_) release(queue_, block.address, block.bytes);
    if (reserved_ != nullptr) release(queue_, reserved_, reserved_bytes_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // One block of so many bytes (0: none) and the spare, of which parts are taken from here on as long as it
  // lasts. Not for activations, which come and go, each in a block of its own. Throws as take does.
  void reserve(int64_t bytes) {
    CHECK(reserved_ == nullptr, "{} arena: reserved twice", name_);
    if (bytes == 0) return;
    check_room(bytes + kReservedSpare);
    reserved_ = static_cast<std::byte*>(allocate(queue_, bytes + kReservedSpare));
    reserved_bytes_ = bytes + kReservedSpare;
    add_used(Purpose::kActivations, kReservedSpare);
  }

  // count elements of T, zeroed, aligned to 64 bytes or more; null when count is 0. Lives until
  // the end of the arena, or give_back of what was not reserved. Throws Error(kDoesNotFit) beyond the
  // budget.
  template <typename T>
  T* take(Purpose purpose, int64_t count) {
    CHECK(count >= 0 && count <= std::numeric_limits<int64_t>::max() / int64_t{sizeof(T)},
          "{} elements", count);
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes == 0) return nullptr;
    check_room(bytes);
    void* address = take_reserved(purpose, bytes);
    if (address == nullptr) {
      address = allocate(queue_, bytes);
      blocks_.push_back({address, bytes, purpose});
    }
    add_used(purpose, bytes);
    return static_cast<T*>(address);
  }

  // Releases one block early. Null is allowed.
  void give_back(const void* address) {
    if (address == nullptr) return;
    auto block = std::find_if(blocks_.begin(), blocks_.end(),
                              [&](const Block& b) { return b.address == address; });
    CHECK(block != blocks_.end(), "{} arena: not a block of this arena, or released twice", name_);
    release(queue_, block->address, block->bytes);
    used_[static_cast<size_t>(block->purpose)] -= block->bytes;
    blocks_.erase(block);
  }

  const PurposeBytes& used() const { return used_; }
  int64_t peak_bytes() const { return peak_; }

 private:
  void add_used(Purpose purpose, int64_t bytes) {
    used_[static_cast<size_t>(purpose)] += bytes;
    peak_ = std::max(peak_, sum(used_));
  }

  void check_room(int64_t bytes) const {
    const int64_t left = budget_ - sum(used_);
    if (bytes <= left) return;
    fail(ErrorKind::kDoesNotFit, "{} memory: {} bytes more than the budget of {} allows", name_,
         bytes - left, budget_);
  }

  void* take_reserved(Purpose purpose, int64_t bytes) {
    if (purpose == Purpose::kActivations || bytes > reserved_bytes_ - reserved_taken_) return nullptr;
    std::byte* address = reserved_ + reserved_taken_;
    reserved_taken_ += (bytes + kReservedAlignment - 1) / kReservedAlignment * kReservedAlignment;
    return address;
  }

  struct Block {
    void* address;
    int64_t bytes;
    Purpose purpose;
  };
  Queue& queue_;
  std::string name_;
  int64_t budget_;
  PurposeBytes used_{};
  int64_t peak_ = 0;
  std::vector<Block> blocks_;
  std::byte* reserved_ = nullptr;
  int64_t reserved_bytes_ = 0, reserved_taken_ = 0;
};

}  // namespace tiercel
