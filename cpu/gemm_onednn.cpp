// Linear layers by oneDNN: single-threaded primitives, called from our workers on fixed blocks.
//
// A primitive and its memory objects are made once per (thread, shape), so the hot path takes no
// lock; oneDNN's own cache makes the second thread's copy cheap. Weights stay as Hugging Face
// stores them: with the tag `ba` oneDNN 2.6 is as fast as with a layout of its choice. Blocks have
// fixed sizes, because the kernel that oneDNN picks, and so the bits, depends on the shape.
#include <omp.h>

#include <algorithm>
#include <array>
#include <dnnl.hpp>
#include <map>

#include "cpu/linear.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kBlockRows = 512;

// m, columns of the block, k, columns of the output, bias, accumulate, fp32 output
using Shape = std::array<int64_t, 7>;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

class Matmul {
 public:
  explicit Matmul(const Shape& shape) {
    using dnnl::memory;
    constexpr auto kBf16 = memory::data_type::bf16;
    const auto [m, n, k, out_stride, has_bias, accumulate, out_f32] = shape;
    const memory::desc x({m, k}, kBf16, memory::dims{k, 1});
    const memory::desc weight({k, n}, kBf16, memory::dims{1, k});
    const memory::desc bias({1, n}, kBf16, memory::dims{n, 1});
    const memory::desc out({m, n}, out_f32 != 0 ? memory::data_type::f32 : kBf16,
                           memory::dims{out_stride, 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (accumulate != 0) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const auto desc = has_bias != 0 ? dnnl::matmul::desc(x, weight, bias, out)
                                    : dnnl::matmul::desc(x, weight, out);
    const dnnl::matmul::primitive_desc primitive(desc, attributes, engine());
    matmul_ = dnnl::matmul(primitive);
    CHECK(primitive.scratchpad_desc().get_size() <= kScratchBytes, "oneDNN wants {} bytes",
          primitive.scratchpad_desc().get_size());
    add(DNNL_ARG_SRC, x);
    add(DNNL_ARG_WEIGHTS, weight);
    add(DNNL_ARG_DST, out);
    add(DNNL_ARG_SCRATCHPAD, primitive.scratchpad_desc());
    if (has_bias != 0) add(DNNL_ARG_BIAS, bias);
  }

  void run(const bf16* x, const bf16* weight, const bf16* bias, void* out, std::byte* scratch) {
    set(DNNL_ARG_SRC, x);
    set(DNNL_ARG_WEIGHTS, weight);
    set(DNNL_ARG_DST, out);
    set(DNNL_ARG_SCRATCHPAD, scratch);
    if (bias != nullptr) set(DNNL_ARG_BIAS, bias);
    matmul_.execute(stream_, arguments_);
  }

 private:
  void add(int argument, const dnnl::memory::desc& desc) {
    arguments_.emplace(argument, dnnl::memory(desc, engine(), nullptr));
  }
  void set(int argument, const void* data) {
    arguments_.at(argument).set_data_handle(const_cast<void*>(data));
  }

  dnnl::stream stream_{engine()};
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// oneDNN (Debian's build) brings OpenMP. Its teams spin, and a team beside our workers would fight
// them for the cores. The setting is the thread's, which may be one of a host application's own.
class TeamOfOne {
 public:
  TeamOfOne() { omp_set_num_threads(1); }
  ~TeamOfOne() { omp_set_num_threads(before_); }
  TeamOfOne(const TeamOfOne&) = delete;
  TeamOfOne& operator=(const TeamOfOne&) = delete;

 private:
  int before_ = omp_get_max_threads();
};

Matmul& matmul_of(const Shape& shape) {
  thread_local std::map<Shape, Matmul> cache;
  return cache.try_emplace(shape, shape).first->second;
}

}  // namespace

void linear_onednn(Queue& queue, const LinearParams& p) {
  if (p.m == 0) return;
  // Few rows: narrow blocks, so that every core has one.
  const int64_t block_columns = p.m <= 128 ? 256 : 1024;
  const int64_t n_blocks = (p.n + block_columns - 1) / block_columns;
  const int64_t n_row_blocks = (p.m + kBlockRows - 1) / kBlockRows;
  const bool out_f32 = p.out_type == DType::kF32;
  queue.for_each(n_blocks * n_row_blocks, [&](int64_t item, const Worker& worker) {
    const int64_t row = item / n_blocks * kBlockRows;
    const int64_t column = item % n_blocks * block_columns;
    const Shape shape = {std::min(kBlockRows, p.m - row),
                         std::min(block_columns, p.n - column),
                         p.k,
                         p.n,
                         p.bias != nullptr,
                         p.accumulate,
                         out_f32};
    const TeamOfOne alone;
    auto* out = static_cast<std::byte*>(p.out) +
                static_cast<size_t>(row * p.n + column) * size_of(p.out_type);
    matmul_of(shape).run(p.x + row * p.k, p.weight.values + column * p.k,
                         p.bias != nullptr ? p.bias + column : nullptr, out, worker.scratch);
  });
}

}  // namespace tiercel::cpu
