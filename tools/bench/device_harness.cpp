#include "tools/bench/device_harness.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

namespace tiercel::bench {
namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// "61 % of copy": what the slowest ceiling would take, over what was taken.
std::string share(const Result& result, const Ceilings& ceilings) {
  struct Bound {
    const char* name;
    double us;
  };
  const auto us = [](double amount, double per_us) { return per_us > 0 ? amount / per_us : 0; };
  const Bound bounds[] = {{"copy", us(result.bytes, ceilings.copy_gbs * 1e3)},
                          {"link", us(result.link_bytes, ceilings.link_gbs * 1e3)},
                          {"matmul", us(result.flops, ceilings.matmul_tflops * 1e6)}};
  const Bound& slowest =
      *std::max_element(std::begin(bounds), std::end(bounds),
                        [](const Bound& a, const Bound& b) { return a.us < b.us; });
  if (slowest.us == 0) return "";
  return fmt::format("{:3.0f} % of {}", 100 * slowest.us / result.us, slowest.name);
}

constexpr int64_t kPoolValues = int64_t{32} << 20;

}  // namespace

void Outlet::send(char kind, const std::string& text) {
  const std::string message = kind + text + "\n";
  for (size_t sent = 0; sent < message.size();) {
    const ssize_t n = write(file_, message.data() + sent, message.size() - sent);
    if (n <= 0) return;  // nobody listens any more
    sent += static_cast<size_t>(n);
  }
}

void Outlet::ceilings(const Ceilings& c) {
  send('C', fmt::format("{} {} {}", c.copy_gbs, c.link_gbs, c.matmul_tflops));
}

bool parse_ceilings(const std::string& text, Ceilings& c) {
  return std::sscanf(text.c_str(), "%lf %lf %lf", &c.copy_gbs, &c.link_gbs, &c.matmul_tflops) == 3;
}

// 65536 quantiles of the normal distribution, drawn four at a time.
std::vector<bf16> random_pool() {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal;
  std::vector<bf16> table(65536);
  for (bf16& value : table) value = bf16(normal(rng));
  std::vector<bf16> pool(kPoolValues);
  for (size_t i = 0; i < pool.size(); i += 4) {
    const uint64_t bits = rng();
    for (size_t j = 0; j < 4; ++j) pool[i + j] = table[bits >> (16 * j) & 0xffff];
  }
  return pool;
}

Device::Device(Outlet outlet, const Ceilings& ceilings, std::span<const bf16> pool, bool smoke)
    : outlet_(outlet),
      ceilings_(ceilings),
      smoke_(smoke),
      stream_({.scratch_bytes = smoke ? int64_t{256} << 20 : int64_t{2} << 30}),
      pinned_(stream_) {
  pool_bytes_ = size(static_cast<int64_t>(pool.size_bytes()), int64_t{1} << 20);
  pool_ = static_cast<bf16*>(cuda::allocate(stream_, pool_bytes_));
  stream_.copy_bytes(pool_, 0, pool.data(), 0, pool_bytes_, 1);
  stream_.finish();
  if (smoke_) return;
  // A tenth of a second of work: an idle device runs at a lower clock.
  const int64_t half = pool_bytes_ / 2;
  for (const auto begin = Clock::now(); us_since(begin) < 1e5; stream_.finish()) {
    for (int i = 0; i < 100; ++i) stream_.copy_bytes(pool_ + half / 2, 0, pool_, 0, half, 1);
  }
  stream_.copy_bytes(pool_, 0, pool.data(), 0, pool_bytes_, 1);
  stream_.finish();
}

Device::~Device() { release_quietly(stream_, pool_, pool_bytes_); }

double Device::run(cuda::Stream& stream, const Call& call, int64_t n) {
  const auto begin = Clock::now();
  for (int64_t i = 0; i < n; ++i) call(next_call_++);
  stream.finish();
  return us_since(begin);
}

double Device::time_us(cuda::Stream& stream, const Call& call, const Effort& effort) {
  stream_.finish();  // operands are made on the main stream
  run(stream, call, 1);
  if (smoke_) return run(stream, call, 1);
  // Few calls overstate the time of one, so the count grows in steps.
  int64_t n = 1;
  double taken = run(stream, call, n);
  for (; taken < effort.ms * 250 && n < 4096; taken = run(stream, call, n)) n *= 4;
  n = std::max<int64_t>(1,
                        std::llround(std::ceil(static_cast<double>(n) * effort.ms * 1e3 / taken)));
  std::vector<double> times;
  for (int i = 0; i < effort.repeats; ++i) {
    times.push_back(run(stream, call, n) / static_cast<double>(n));
  }
  return median(times);
}

double Device::time_beside_us(cuda::Stream& stream, const Call& call, double call_us,
                              cuda::Stream& busy, const Call& other, double other_us) {
  const double window_us = smoke_ ? 0 : 3e4;
  const auto n = static_cast<int64_t>(window_us / call_us) + 1;
  // The others must outlast the calls, which they slow down.
  const auto n_other = static_cast<int64_t>(3 * window_us / other_us) + 2;
  std::vector<double> times;
  for (int repeat = 0; repeat < (smoke_ ? 1 : 3); ++repeat) {
    for (int64_t i = 0; i < n_other; ++i) other(next_call_++);
    times.push_back(run(stream, call, n) / static_cast<double>(n));
    busy.finish();
  }
  return median(times);
}

void Device::report(const Result& result) {
  const double bytes = result.link_bytes > 0 ? result.link_bytes : result.bytes;
  std::string line = fmt::format("{:<17} {:<33} {:>9.1f} us", result.name, result.shape, result.us);
  line += bytes > 0 ? fmt::format(" {:7.1f} GB/s", bytes / result.us * 1e-3) : std::string(13, ' ');
  line += result.flops > 0 ? fmt::format(" {:6.1f} TFLOP/s", result.flops / result.us * 1e-6)
                           : std::string(15, ' ');
  line += "  " + share(result, ceilings_);
  line.erase(line.find_last_not_of(' ') + 1);
  outlet_.line(line);
}

void Device::wrong(const std::string& text) {
  is_wrong_ = true;
  line("WRONG: " + text);
}

void Device::set_ceilings(const Ceilings& ceilings) {
  ceilings_ = ceilings;
  outlet_.ceilings(ceilings);
}

void Device::fill_random(void* target, int64_t bytes) {
  const int64_t piece_bytes = pool_bytes_ / 2;
  constexpr int64_t kStep = 2048;
  for (int64_t at = 0; at < bytes; at += piece_bytes) {
    const int64_t offset = next_piece_++ * 7919 % (piece_bytes / kStep) * kStep;
    stream_.copy_bytes(static_cast<char*>(target) + at, 0,
                       reinterpret_cast<const char*>(pool_) + offset, 0,
                       std::min(piece_bytes, bytes - at), 1);
  }
}

void Device::expect_finite(const std::string& name, const bf16* values, int64_t n) {
  std::vector<bf16> host(static_cast<size_t>(n));
  stream_.finish();
  stream_.copy_bytes(host.data(), 0, values, 0, n * 2, 1);
  stream_.finish();
  const auto bad = std::count_if(host.begin(), host.end(), [](bf16 value) {
    return !std::isfinite(static_cast<float>(value));
  });
  const auto zeros = std::count(host.begin(), host.end(), bf16{});
  if (bad > 0 || zeros > n / 2) {
    wrong(fmt::format("{}: of {} values {} are not finite, {} are zero", name, n, bad, zeros));
  }
}

bf16* ColdNoise::next(int64_t n) {
  const int64_t padded = (n + 127) / 128 * 128;
  CHECK(padded <= noise_.size(), "{} of {} values", padded, noise_.size());
  if (at_ + padded > noise_.size()) at_ = 0;
  bf16* slice = noise_.data() + at_;
  at_ += padded;
  return slice;
}

DeviceRope::DeviceRope(Device& device, int32_t head_dim, int64_t n_positions) {
  std::vector<double> inv_freq;
  for (int32_t i = 0; i < head_dim / 2; ++i) inv_freq.push_back(std::pow(5e5, -2.0 * i / head_dim));
  const RopeTable table(inv_freq, n_positions);
  view_ = table.view();
  // RopeTable keeps its four tables in one piece, the coarse cosines first.
  const float* begin = view_.coarse_cos;
  tables_ = std::make_unique<Array<float>>(
      device, std::vector<float>(begin, begin + table.bytes() / sizeof(float)));
  const auto moved = [&](const float* p) { return tables_->data() + (p - begin); };
  view_.coarse_sin = moved(view_.coarse_sin);
  view_.fine_cos = moved(view_.fine_cos);
  view_.fine_sin = moved(view_.fine_sin);
  view_.coarse_cos = moved(begin);
}

std::vector<int32_t> ascending_ids(std::mt19937_64& rng, int64_t n, int64_t first, int64_t end) {
  CHECK(n <= end - first, "{} distinct numbers of [{}, {})", n, first, end);
  std::uniform_int_distribution<int32_t> draw(static_cast<int32_t>(first),
                                              static_cast<int32_t>(end - 1));
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < n) {
    while (static_cast<int64_t>(ids.size()) < n) ids.push_back(draw(rng));
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }
  return ids;
}

}  // namespace tiercel::bench
