// What the stages of bench_device share: one stream, memory full of random numbers, a stopwatch and
// a report.
//
// Times are those of back-to-back calls: n calls are enqueued between two stream.finish(), so the
// launches of short ops overlap with their predecessors, as in a decode step. A single call alone
// takes longer by the latency of a launch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/ops.h"
#include "engine/base/rope.h"
#include "kernels/stream.h"

namespace tiercel::bench {

// Measured by the first stage of a run; everything else is a share of them.
struct Ceilings {
  double copy_gbs = 0;  // device to device, bytes read + bytes written
  double link_gbs = 0;  // pinned host memory to device, in bulk
  double matmul_tflops = 0;
};

// One measurement. Its bound is the slowest of what it moves and computes, each at its ceiling.
struct Result {
  std::string name, shape;
  double us = 0;
  double bytes = 0;       // of device memory, every operand once
  double link_bytes = 0;  // from or to the host
  double flops = 0;
};

struct Effort {
  double ms = 30;  // of one measurement, at least
  int repeats = 5;
};

// Where a stage's process writes what the main process prints; one message a line.
class Outlet {
 public:
  explicit Outlet(int file) : file_(file) {}
  void line(const std::string& text) { send('T', text); }
  void ceilings(const Ceilings& ceilings);

 private:
  void send(char kind, const std::string& text);
  int file_;
};
// Reads what Outlet::ceilings wrote.
bool parse_ceilings(const std::string& text, Ceilings& ceilings);

// Random bf16 numbers, standard normal: zeros draw less power and flatter every kernel.
std::vector<bf16> random_pool();

// The device under test, as one stage sees it.
class Device {
 public:
  // smoke: tiny sizes and one call each, to see that everything runs.
  Device(Outlet outlet, const Ceilings& ceilings, std::span<const bf16> pool, bool smoke);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  cuda::Stream& stream() { return stream_; }
  cuda::PinnedMemory& pinned() { return pinned_; }
  std::mt19937_64& rng() { return rng_; }
  bool smoke() const { return smoke_; }
  int64_t size(int64_t full, int64_t smoke) const { return smoke_ ? smoke : full; }

  // call(i) enqueues one call; i counts them, so that a caller can take cold operands in turn.
  // Microseconds per call, the median of several measurements.
  using Call = std::function<void(int64_t)>;
  double time_us(cuda::Stream& stream, const Call& call, const Effort& effort = {});
  double time_us(const Call& call, const Effort& effort = {}) {
    return time_us(stream_, call, effort);
  }
  // The same while other(i), which takes other_us alone, runs on another stream all the time.
  double time_beside_us(cuda::Stream& stream, const Call& call, double call_us, cuda::Stream& busy,
                        const Call& other, double other_us);

  void report(const Result& result);
  void line(const std::string& text) { outlet_.line(text); }
  // Says that an op computed nonsense, which fails the stage.
  void wrong(const std::string& text);
  bool is_wrong() const { return is_wrong_; }
  const Ceilings& ceilings() const { return ceilings_; }
  void set_ceilings(const Ceilings& ceilings);

  // Fills memory of either tier with random bf16 numbers.
  void fill_random(void* target, int64_t bytes);
  // Wrong where values are not finite, or mostly zero: a fast kernel that computes nothing.
  void expect_finite(const std::string& name, const bf16* values, int64_t n);

 private:
  double run(cuda::Stream& stream, const Call& call, int64_t n);

  Outlet outlet_;
  Ceilings ceilings_;
  bool smoke_;
  bool is_wrong_ = false;
  cuda::Stream stream_;
  cuda::PinnedMemory pinned_;
  std::mt19937_64 rng_{1};
  bf16* pool_ = nullptr;  // on the device
  int64_t pool_bytes_ = 0;
  int64_t next_call_ = 0;
  int64_t next_piece_ = 0;
};

// After a device fault nothing can be released; the first error is the one to tell.
template <typename Tier>
void release_quietly(Tier& tier, void* address, int64_t bytes) noexcept {
  try {
    cuda::release(tier, address, bytes);
  } catch (const Error&) {
  }
}

// n elements of device memory: zeros, or a copy of host values.
template <typename T>
class Array {
 public:
  Array(Device& device, int64_t n) : device_(device), n_(n) {
    data_ = static_cast<T*>(cuda::allocate(device.stream(), bytes()));
  }
  Array(Device& device, const std::vector<T>& values)
      : Array(device, static_cast<int64_t>(values.size())) {
    device.stream().copy_bytes(data_, 0, values.data(), 0, bytes(), 1);
    device.stream().finish();
  }
  ~Array() { release_quietly(device_.stream(), data_, bytes()); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  int64_t size() const { return n_; }
  int64_t bytes() const { return n_ * static_cast<int64_t>(sizeof(T)); }
  std::vector<T> host() const {
    std::vector<T> values(static_cast<size_t>(n_));
    device_.stream().copy_bytes(values.data(), 0, data_, 0, bytes(), 1);
    device_.stream().finish();
    return values;
  }

 private:
  Device& device_;
  int64_t n_;
  T* data_ = nullptr;
};

// Random numbers in pinned host memory.
class PinnedNoise {
 public:
  PinnedNoise(Device& device, int64_t n) : device_(device), bytes_(2 * n) {
    data_ = static_cast<bf16*>(cuda::allocate(device.pinned(), bytes_));
    device.fill_random(data_, bytes_);
    device.stream().finish();
  }
  ~PinnedNoise() { release_quietly(device_.pinned(), data_, bytes_); }
  PinnedNoise(const PinnedNoise&) = delete;
  PinnedNoise& operator=(const PinnedNoise&) = delete;
  bf16* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Device& device_;
  int64_t bytes_;
  bf16* data_ = nullptr;
};

// n random bf16 numbers in device memory.
class Noise : public Array<bf16> {
 public:
  Noise(Device& device, int64_t n) : Array(device, n) { device.fill_random(data(), bytes()); }
};

// Random numbers dealt out slice after slice, round and round. A pool of several L2 caches makes
// every operand a cold one.
class ColdNoise {
 public:
  ColdNoise(Device& device, int64_t n) : noise_(device, n) {}
  bf16* next(int64_t n);

 private:
  Noise noise_;
  int64_t at_ = 0;
};
inline constexpr int64_t kColdBytes = int64_t{512} << 20;

// RoPE tables in device memory, theta 500000.
class DeviceRope {
 public:
  DeviceRope(Device& device, int32_t head_dim, int64_t n_positions);
  const RopeView& view() const { return view_; }

 private:
  std::unique_ptr<Array<float>> tables_;
  RopeView view_;
};

// n distinct numbers of [first, end), ascending.
std::vector<int32_t> ascending_ids(std::mt19937_64& rng, int64_t n, int64_t first, int64_t end);

// The stages.
void run_ceilings(Device& device);
void run_fetch(Device& device);
void run_prefill_dense(Device& device);
void run_prefill_variants(Device& device);
void run_prefill_64(Device& device);
void run_prefill_96(Device& device);
void run_prefill_256(Device& device);
void run_prefill_sparse(Device& device);
void run_decode_dense(Device& device);
void run_decode_sparse(Device& device);
void run_select(Device& device);
void run_select_together(Device& device);
void run_select_prefill(Device& device);
void run_index(Device& device);
void run_slots(Device& device);
void run_rebuild(Device& device);
void run_project(Device& device);
void run_fit(Device& device);
void run_linear(Device& device);
void run_codes(Device& device);
void run_experts(Device& device);
void run_host_weights(Device& device);
void run_elementwise(Device& device);

}  // namespace tiercel::bench
