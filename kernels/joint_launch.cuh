// Kernels that several sequences launch together. A sequence alone decodes with kernels of a few
// microseconds each; a batch that launched them one after the other would spend its time on launches.
//
//   struct Foo : JointKernel<FooParams, kThreads, kMinBlocks> {
//     GPU static void run(const FooParams& p, const JointGrid& grid);
//   };
//   launch_joint<Foo>(stream, grid, shared_bytes, params);
//
// By itself that is launch_dependent. Within together() the launches of every sequence are held back,
// and then become as few as there can be:
//
//   sequence 0   score  group  attend               score of 0, 1 and 2 | group of 0 and 2 | all of 1 |
//   sequence 1   score  all    attend        ->     attend of 0, 1 and 2
//   sequence 2   score  group  attend
//
// In such a launch blockIdx.z says whose a block is. Blocks see what they would in a launch of their
// sequence's own: blockIdx.x, blockIdx.y and gridDim.y as they are, the rest by JointGrid; so a sequence
// has the bits that it has alone. All of it is by value: 32,764 bytes of parameters may be.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels/launch.cuh"

namespace tiercel::cuda {

// Of a launch as a sequence's blocks see it: gridDim.x, blockIdx.z and gridDim.z.
struct JointGrid {
  unsigned n_x = 1, z = 0, n_z = 1;
};

template <typename Params_, int kThreads_, int kMinBlocks_>
struct JointKernel {
  using Params = Params_;
  static constexpr int kThreads = kThreads_, kMinBlocks = kMinBlocks_;
};

template <typename Params>
struct JointParams {
  Params of[kMostTogether];
  uint32_t n_x[kMostTogether];
  uint32_t n_z;
};
inline constexpr size_t kMostParamBytes = 32764;

template <typename Kernel>
KERNEL(Kernel::kThreads, Kernel::kMinBlocks)
run_alone(const GRID_CONST typename Kernel::Params p) {
  Kernel::run(p, JointGrid{gridDim.x, blockIdx.z, gridDim.z});
}

template <typename Kernel>
KERNEL(Kernel::kThreads, Kernel::kMinBlocks)
run_joint(const GRID_CONST JointParams<typename Kernel::Params> all) {
  const unsigned sequence = blockIdx.z / all.n_z, n_x = all.n_x[sequence];
  if (blockIdx.x >= n_x) {
    gpu::begin_dependent();
    return;
  }
  Kernel::run(all.of[sequence], JointGrid{n_x, blockIdx.z % all.n_z, all.n_z});
}

// Launches that wait for the other sequences.
class HeldLaunches {
 public:
  struct Launch;
  // Launches n of one kernel, whose grids differ in x at most. The list is used up.
  using Start = void (*)(Stream& stream, const Launch** launches, int n);
  struct Launch {
    Start start = nullptr;
    dim3 grid;
    size_t shared_bytes = 0;
    const std::byte* params = nullptr;
  };

  void set_sequence(int sequence) { sequence_ = sequence; }

  template <typename Params>
  void add(Start start, dim3 grid, size_t shared_bytes, const Params& params) {
    static_assert(std::is_trivially_copyable_v<Params>);
    if (pages_.empty() || used_ + sizeof(Params) > kPage) next_page();
    std::byte* at = pages_[page_].get() + used_;
    std::memcpy(at, &params, sizeof(Params));
    used_ += (sizeof(Params) + 15) / 16 * 16;
    launches_[static_cast<size_t>(sequence_)].push_back({start, grid, shared_bytes, at});
  }

  void clear() {
    for (auto& of_sequence : launches_) of_sequence.clear();
    page_ = used_ = 0;
  }

  void launch_all(Stream& stream) {
    size_t most = 0;
    for (const auto& of_sequence : launches_) most = std::max(most, of_sequence.size());
    for (size_t place = 0; place < most; ++place) launch_place(stream, place);
    clear();
  }

 private:
  static constexpr size_t kPage = size_t{64} << 10;

  // Pages, because what was added must not move.
  void next_page() {
    if (!pages_.empty()) ++page_;
    if (page_ == pages_.size()) pages_.push_back(std::make_unique<std::byte[]>(kPage));
    used_ = 0;
  }

  static bool are_alike(const Launch& a, const Launch& b) {
    return a.start == b.start && a.grid.y == b.grid.y && a.grid.z == b.grid.z;
  }

  // What every sequence does at the same place, kernel by kernel.
  void launch_place(Stream& stream, size_t place) {
    std::array<const Launch*, kMostTogether> waiting;
    int n = 0;
    for (const auto& of_sequence : launches_) {
      if (place < of_sequence.size()) waiting[static_cast<size_t>(n++)] = &of_sequence[place];
    }
    const auto end = waiting.begin() + n;
    for (auto begin = waiting.begin(); begin != end;) {
      const Launch& first = **begin;
      const auto rest = std::stable_partition(
          begin, end, [&](const Launch* other) { return are_alike(first, *other); });
      first.start(stream, &*begin, static_cast<int>(rest - begin));
      begin = rest;
    }
  }

  std::array<std::vector<Launch>, kMostTogether> launches_;
  std::vector<std::unique_ptr<std::byte[]>> pages_;
  size_t page_ = 0, used_ = 0;
  int sequence_ = 0;
};

// A kernel may do for several sequences at once what they have in common:
//     static bool can_merge(const Params& a, const Params& b);
//     static void launch_merged(Stream& stream, const Params* const* params, int n);
template <typename Kernel>
concept Merges = requires(Stream& stream, const typename Kernel::Params& p) {
  Kernel::can_merge(p, p);
  Kernel::launch_merged(stream, nullptr, 0);
};

// Launches those that can be merged with others, and leaves the rest in `launches`; their number.
template <typename Kernel>
int start_merged(Stream& stream, const HeldLaunches::Launch** launches, int n) {
  using Params = typename Kernel::Params;
  const auto params_of = [](const HeldLaunches::Launch* launch) {
    return reinterpret_cast<const Params*>(launch->params);
  };
  int n_left = 0;
  for (int begin = 0; begin < n;) {
    const HeldLaunches::Launch* first = launches[begin];
    const auto end = std::stable_partition(
        launches + begin, launches + n, [&](const HeldLaunches::Launch* other) {
          return other == first || Kernel::can_merge(*params_of(first), *params_of(other));
        });
    const int alike = static_cast<int>(end - launches) - begin;
    if (alike == 1) {
      launches[n_left++] = first;
    } else {
      const Params* all[kMostTogether];
      for (int i = 0; i < alike; ++i) all[i] = params_of(launches[begin + i]);
      Kernel::launch_merged(stream, all, alike);
    }
    begin += alike;
  }
  return n_left;
}

template <typename Kernel>
void start_joint(Stream& stream, const HeldLaunches::Launch** launches, int n) {
  using Params = typename Kernel::Params;
  if constexpr (Merges<Kernel>) {
    if (n > 1) n = start_merged<Kernel>(stream, launches, n);
    if (n == 0) return;
  }
  const HeldLaunches::Launch& first = *launches[0];
  if (n == 1) {
    launch_dependent<run_alone<Kernel>>(stream, first.grid, Kernel::kThreads, first.shared_bytes,
                                        *reinterpret_cast<const Params*>(first.params));
    return;
  }
  static_assert(sizeof(JointParams<Params>) <= kMostParamBytes);
  JointParams<Params> all;
  dim3 grid = first.grid;
  size_t shared_bytes = 0;
  for (int i = 0; i < n; ++i) {
    const HeldLaunches::Launch& launch = *launches[i];
    std::memcpy(static_cast<void*>(all.of + i), launch.params, sizeof(Params));
    all.n_x[i] = launch.grid.x;
    grid.x = std::max(grid.x, launch.grid.x);
    shared_bytes = std::max(shared_bytes, launch.shared_bytes);
  }
  all.n_z = grid.z;
  grid.z *= static_cast<unsigned>(n);
  launch_dependent<run_joint<Kernel>>(stream, grid, Kernel::kThreads, shared_bytes, all);
}

template <typename Kernel>
void launch_joint(Stream& stream, dim3 grid, size_t shared_bytes,
                  const typename Kernel::Params& params) {
  if (HeldLaunches* held = stream.holding()) {
    held->add(&start_joint<Kernel>, grid, shared_bytes, params);
    return;
  }
  launch_dependent<run_alone<Kernel>>(stream, grid, Kernel::kThreads, shared_bytes, params);
}

}  // namespace tiercel::cuda
