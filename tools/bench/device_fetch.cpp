// Fetching missed chunks from pinned host memory, from inside a kernel: every plan, for several
// piece sizes and numbers of blocks; the best of them beside a copy that keeps the device's memory
// busy.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/movement.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

using cuda::FetchPlan;
using Kind = FetchPlan::Kind;

constexpr int32_t kHeadDim = 128;
constexpr int32_t kBlocks[] = {1, 2, 4, 8, 16, 32};
constexpr int64_t kPieceBytes[] = {512, 1024, 2048, 4096, 16384};
// The rings take four times depth x stage_bytes of shared memory.
constexpr FetchPlan kPlans[] = {
    {.kind = Kind::kDirect, .depth = 4},
    {.kind = Kind::kDirect, .depth = 8},
    {.kind = Kind::kDirect, .depth = 16},
    {.kind = Kind::kBulk, .depth = 2, .stage_bytes = 2048},
    {.kind = Kind::kBulk, .depth = 4, .stage_bytes = 2048},
    {.kind = Kind::kBulk, .depth = 8, .stage_bytes = 2048},
    {.kind = Kind::kBulk, .depth = 16, .stage_bytes = 2048},
    {.kind = Kind::kBulk, .depth = 8, .stage_bytes = 4096},
    {.kind = Kind::kBulk, .depth = 3, .stage_bytes = 16384},
};

std::string name_of(const FetchPlan& plan) {
  return plan.kind == Kind::kDirect ? fmt::format("direct {}", plan.depth)
                                    : fmt::format("bulk {} x {}", plan.depth, plan.stage_bytes);
}

// Missed chunks of many steps, their slots, and the planes that they come from.
class Misses {
 public:
  Misses(Device& device, const PinnedNoise& plane, int64_t piece_bytes, int64_t n_misses)
      : device_(device),
        plane_(plane),
        n_kv_heads_(device.size(8, 2)),
        n_misses_(n_misses),
        n_lists_(device.size(128, 2)),
        piece_(piece_bytes / 2),
        head_stride_(plane.bytes() / 2 / n_kv_heads_),
        chunk_lists_(chunk_lists()),
        chunks_(device, chunk_lists_),
        slots_(device, slot_list()),
        counts_(device, std::vector<int32_t>(n_kv_heads_, static_cast<int32_t>(n_misses))),
        records_(device, n_kv_heads_ * n_misses * 2 * piece_) {}

  FetchParams params(int64_t turn) const {
    return {.values = plane_.data(),
            .value_head_stride = head_stride_,
            .miss_chunks = chunks_.data() + turn % n_lists_ * n_kv_heads_ * n_misses_,
            .miss_slots = slots_.data(),
            .miss_counts = counts_.data(),
            .stride = n_misses_,
            .slots = records_.data(),
            .slot_head_stride = n_misses_ * 2 * piece_,
            .chunk_tokens = static_cast<int32_t>(piece_ / kHeadDim),
            .n_kv_heads = static_cast<int32_t>(n_kv_heads_),
            .head_dim = kHeadDim};
  }
  Device::Call fetch(cuda::Stream& stream, const FetchPlan& plan) const {
    return [this, &stream, plan](int64_t turn) {
      const FetchParams p = params(turn);
      cuda::fetch_with(stream, {&p, 1}, plan);
    };
  }
  double bytes() const { return static_cast<double>(n_kv_heads_ * n_misses_ * piece_ * 2); }

  // Fetches the first list and compares.
  bool is_right(const FetchPlan& plan) const {
    device_.stream().fill_bytes(records_.data(), 0xff, records_.bytes());
    fetch(device_.stream(), plan)(0);
    const std::vector<bf16> records = records_.host();
    const std::vector<int32_t> slots = slots_.host();
    for (int64_t i = 0; i < n_kv_heads_ * n_misses_; ++i) {
      const int64_t head = i / n_misses_;
      const bf16* source = plane_.data() + head * head_stride_ + chunk_lists_[i] * piece_;
      const bf16* record = records.data() + (2 * (head * n_misses_ + slots[i]) + 1) * piece_;
      if (std::memcmp(source, record, static_cast<size_t>(piece_) * 2) != 0) return false;
    }
    return true;
  }

 private:
  std::vector<int32_t> chunk_lists() const {
    std::vector<int32_t> all;
    for (int64_t i = 0; i < n_lists_ * n_kv_heads_; ++i) {
      const auto list = ascending_ids(device_.rng(), n_misses_, 0, head_stride_ / piece_);
      all.insert(all.end(), list.begin(), list.end());
    }
    return all;
  }
  std::vector<int32_t> slot_list() const {
    std::vector<int32_t> all(n_kv_heads_ * n_misses_);
    for (auto head = all.begin(); head != all.end(); head += n_misses_) {
      std::iota(head, head + n_misses_, 0);
      std::shuffle(head, head + n_misses_, device_.rng());
    }
    return all;
  }

  Device& device_;
  const PinnedNoise& plane_;
  int64_t n_kv_heads_, n_misses_, n_lists_, piece_, head_stride_;
  std::vector<int32_t> chunk_lists_;
  Array<int32_t> chunks_, slots_, counts_;
  Array<bf16> records_;
};

struct Best {
  FetchPlan plan;
  double us = 1e30;
};
constexpr int32_t kFewBlocks = 16;  // that leave the device to others

// One line per plan, one column per number of blocks. few: of kFewBlocks at most.
Best matrix(Device& device, const Misses& misses, int64_t piece_bytes, Best* few) {
  Best best;
  for (FetchPlan plan : kPlans) {
    if (plan.kind == Kind::kBulk && device.stream().architecture() != 90) continue;
    if (plan.kind == Kind::kBulk && plan.stage_bytes > std::max<int64_t>(2048, piece_bytes))
      continue;
    std::string line = fmt::format("fetch {:>5} B {:<14}", piece_bytes, name_of(plan));
    double fastest = 1e30;
    for (const int32_t blocks : kBlocks) {
      if (device.smoke() && blocks > 2) break;
      plan.blocks = blocks;
      const double us =
          device.time_us(misses.fetch(device.stream(), plan), {.ms = 8, .repeats = 3});
      line += fmt::format(" {:>2}: {:5.1f}", blocks, misses.bytes() / us * 1e-3);
      fastest = std::min(fastest, us);
      if (us < best.us) best = {plan, us};
      if (us < few->us && blocks <= kFewBlocks) *few = {plan, us};
    }
    const double link_us = misses.bytes() / (device.ceilings().link_gbs * 1e3);
    device.line(fmt::format("{} GB/s, {:3.0f} % of link", line, 100 * link_us / fastest));
    if (!misses.is_right(plan)) device.wrong(fmt::format("fetch: {} moved other bytes", line));
  }
  return best;
}

void report(Device& device, const Misses& misses, const std::string& shape, double us) {
  device.report({.name = "fetch", .shape = shape, .us = us, .link_bytes = misses.bytes()});
}

// Either work while the other goes on, each against itself alone.
void beside_copy(Device& device, const Misses& misses, const FetchPlan& plan,
                 const std::string& what) {
  const int64_t bytes = device.size(int64_t{1} << 30, 1 << 16);
  const Noise source(device, bytes / 2), target(device, bytes / 2);
  cuda::Stream urgent({.urgent = true});
  const auto fetch = misses.fetch(urgent, plan);
  const auto copy = [&](int64_t) {
    device.stream().copy_bytes(target.data(), 0, source.data(), 0, bytes, 1);
  };
  const double fetch_us = device.time_us(urgent, fetch), copy_us = device.time_us(copy);
  const double busy_us =
      device.time_beside_us(urgent, fetch, fetch_us, device.stream(), copy, copy_us);
  report(device, misses, what + ", copy beside", busy_us);
  const double slow_us =
      device.time_beside_us(device.stream(), copy, copy_us, urgent, fetch, fetch_us);
  device.report({.name = "copy",
                 .shape = "1 GiB, that fetch beside",
                 .us = slow_us,
                 .bytes = 2 * static_cast<double>(bytes)});
}

// What a decode step misses at hit rates of 80 and 60 %, by the plan that it would use.
void steps(Device& device, const PinnedNoise& plane) {
  const FetchPlan plan = cuda::default_fetch_plan(device.stream());
  for (const int64_t n : {51, 102}) {
    const int64_t n_misses = device.size(n, 4);
    const Misses misses(device, plane, 2048, n_misses);
    report(device, misses, fmt::format("default plan, {} x 2048 B", n_misses),
           device.time_us(misses.fetch(device.stream(), plan)));
  }
}

}  // namespace

void run_fetch(Device& device) {
  const PinnedNoise plane(device, device.size(int64_t{1} << 29, 1 << 20));
  for (const int64_t piece_bytes : kPieceBytes) {
    const Misses misses(device, plane, piece_bytes, device.size(256, 8));
    Best few;
    const Best best = matrix(device, misses, piece_bytes, &few);
    const std::string what = fmt::format("{} in {} blocks", name_of(best.plan), best.plan.blocks);
    device.line(fmt::format("fetch {:>5} B: best is {}", piece_bytes, what));
    report(device, misses,
           fmt::format("{} B, {} in {} blocks", piece_bytes, name_of(few.plan), few.plan.blocks), few.us);
    if (piece_bytes == 2048 || piece_bytes == 16384) beside_copy(device, misses, best.plan, what);
  }
  steps(device, plane);
}

}  // namespace tiercel::bench
