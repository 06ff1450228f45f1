// The host half of kernels/gpu.cuh: plain definitions of every name, for the SIMT emulator.
//
// A collective is identified by its place in the source, not by its return address: compilers clone
// code paths. Instruction layouts follow the PTX ISA; a micro-test on a
// device compares them with the hardware.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "engine/base/dtype.h"
#include "tests/simt/launch.h"
#include "tests/simt/simt.h"
#include "tests/simt/tensor_core.h"
#include "tests/simt/work_queue.h"

#define GPU inline
#define GPU_AND_HOST inline
// Not inline: a kernel that is no template stands in one source only, as for nvcc.
#define KERNEL(threads, blocks) void
#define GRID_CONST
#define SHARED(name) uint8_t* name = simt::g.b->smem
#define TIERCEL_HOPPER_BODY 1
#define threadIdx (simt::g.cur->tid)
#define blockIdx (simt::g.b->block_idx)
#define blockDim (simt::g.b->block_dim)
#define gridDim (simt::g.b->grid_dim)
#define __restrict__

// As strictly aligned as on a device, so that a sanitizer sees what would be a fault there.
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace tiercel::gpu {

// What cuTensorMapEncodeTiled is told; innermost dimension first; bf16 only.
struct TensorMap {
  const bf16* base;
  int rank;
  uint64_t dim[5];
  uint64_t stride_bytes[5];
  uint32_t box[5];
  int swizzle;  // 0, 32, 64, 128
};

inline float bits_to_float(uint32_t u) { return std::bit_cast<float>(u); }
inline uint32_t float_to_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float bf16_value(bf16 x) { return static_cast<float>(x); }

// std::source_location where the compiler has it; clang 14 only has its parts.
#ifdef __cpp_lib_source_location
using Site = std::source_location;
#else
class Site {
 public:
  static constexpr Site current(const char* file = __builtin_FILE(),
                                uint32_t line = __builtin_LINE(),
                                uint32_t column = __builtin_COLUMN()) {
    return Site(file, line, column);
  }
  constexpr const char* file_name() const { return file_; }
  constexpr uint32_t line() const { return line_; }
  constexpr uint32_t column() const { return column_; }

 private:
  constexpr Site(const char* file, uint32_t line, uint32_t column)
      : file_(file), line_(line), column_(column) {}

  const char* file_;
  uint32_t line_, column_;
};
#endif
#define HERE Site at = Site::current()
#define SITE()                                               \
  (uint64_t(at.line()) << 32 ^ uint64_t(at.column()) << 48 ^ \
   reinterpret_cast<uintptr_t>(at.file_name()))
inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline double mul_rn(double a, double b) { return a * b; }
inline double add_rn(double a, double b) { return a + b; }
inline double bits_to_double(uint64_t u) { return std::bit_cast<double>(u); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float half_to_float(uint16_t half) { return f16_to_float(half); }
inline uint32_t pack_bf16(float lo, float hi) {
  return bf16(lo).bits | uint32_t(bf16(hi).bits) << 16;
}
inline void int8_to_bf16(uint32_t four, uint32_t& first, uint32_t& second) {
  const auto value = [&](int i) { return static_cast<float>(static_cast<int8_t>(four >> 8 * i)); };
  first = pack_bf16(value(0), value(1));
  second = pack_bf16(value(2), value(3));
}
inline void bar_sync(int id, int n) { simt::bar_sync(id, n, true); }
inline void bar_arrive(int id, int n) { simt::bar_sync(id, n, false); }
inline void sync_threads() { simt::bar_sync(0, static_cast<int>(simt::g.b->fibers.size()), true); }
struct Shuffle {
  uint32_t in, out;
  int src;
};
__attribute__((noinline)) inline uint32_t exchange(uint32_t v, int src, Site at) {
  Shuffle s{v, 0, src};
  simt::warp_all(SITE(), &s, [](void** a) {
    for (int i = 0; i < 32; ++i) {
      auto* t = static_cast<Shuffle*>(a[i]);
      t->out = static_cast<Shuffle*>(a[t->src & 31])->in;
    }
  });
  return s.out;
}
#define HOT __attribute__((always_inline)) inline
HOT uint32_t shuffle(uint32_t v, int src, HERE) { return exchange(v, src, at); }
HOT float shuffle_xor(float v, int m, HERE) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  u = exchange(u, simt::lane() ^ m, at);
  std::memcpy(&v, &u, 4);
  return v;
}
HOT uint32_t shuffle_xor(uint32_t v, int m, HERE) { return exchange(v, simt::lane() ^ m, at); }
HOT uint32_t shuffle_up(uint32_t v, int d, HERE) {
  return exchange(v, simt::lane() >= d ? simt::lane() - d : simt::lane(), at);
}
struct Vote {
  bool p;
  uint32_t out;
};
__attribute__((noinline)) inline uint32_t ballot_(bool p, Site at) {
  Vote v{p, 0};
  simt::warp_all(SITE(), &v, [](void** a) {
    uint32_t m = 0;
    for (int i = 0; i < 32; ++i) m |= uint32_t(static_cast<Vote*>(a[i])->p) << i;
    for (int i = 0; i < 32; ++i) static_cast<Vote*>(a[i])->out = m;
  });
  return v.out;
}
HOT uint32_t ballot(bool p, HERE) { return ballot_(p, at); }
__attribute__((noinline)) inline void sync_warp(HERE) {
  simt::warp_all(SITE(), nullptr, [](void**) {});
}
inline int popcount(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t atomic_add(uint32_t* p, uint32_t v) {
  const uint32_t r = *p;
  *p += v;
  return r;
}
inline uint64_t atomic_add(uint64_t* p, uint64_t v) {
  const uint64_t r = *p;
  *p += v;
  return r;
}
inline uint32_t atomic_add_ordered(uint32_t* p, uint32_t v) { return atomic_add(p, v); }
inline void atomic_or(uint32_t* p, uint32_t v) { *p |= v; }
// mbarrier: 64 bits of shared memory, ours to lay out
struct MBar {
  int32_t tx;
  uint16_t pending;
  uint16_t expected_phase;
};  // top bit of the last: phase
static_assert(sizeof(MBar) == 8);
inline MBar& mb(uint64_t* b) { return *reinterpret_cast<MBar*>(b); }
inline void mb_check(MBar& m) {
  if (m.pending == 0 && m.tx == 0) {
    m.pending = m.expected_phase & 0x7fff;
    m.expected_phase ^= 0x8000;
    ++simt::g.b->progress;
  }
}
inline void mbar_init(uint64_t* b, int count) { mb(b) = {0, uint16_t(count), uint16_t(count)}; }
inline void mbar_fence_init() {}
inline void mbar_arrive(uint64_t* b) {
  auto& m = mb(b);
  if (m.pending == 0) simt::die("mbarrier: too many arrivals");
  --m.pending;
  mb_check(m);
  ++simt::g.b->progress;
  if (simt::g.rng() % 4 == 0) simt::yield();  // whatever follows must not rely on coming at once
}
inline void mbar_expect_bytes(uint64_t* b, uint32_t bytes) {
  mb(b).tx += int32_t(bytes);
  mbar_arrive(b);
}
inline void mbar_complete(uint64_t* b, uint32_t bytes) {
  auto& m = mb(b);
  m.tx -= int32_t(bytes);
  mb_check(m);
}
inline void mbar_wait(uint64_t* b, uint32_t parity) {
  simt::wait_until("mbarrier", [&] { return (mb(b).expected_phase >> 15) != parity; });
}
inline void issue_bulk(std::function<void()> f) {
  if (simt::g.bulk == simt::Async::kEager)
    f();
  else
    simt::g.b->engine.push_back({std::move(f)});
}
inline void copy_box_3d(void* dst, const TensorMap* m, int x, int y, int z, uint64_t* bar) {
  uint32_t base = shared_address(dst);
  if (base % (m->swizzle ? 8 * m->swizzle : 128))
    simt::die("TMA destination not aligned to its swizzle atom");
  issue_bulk([=] {
    uint32_t off = base;
    for (uint32_t k = 0; k < m->box[2]; ++k)
      for (uint32_t j = 0; j < m->box[1]; ++j)
        for (uint32_t i = 0; i < m->box[0]; ++i, off += 2) {
          int64_t cx = int64_t(x) + i, cy = int64_t(y) + j, cz = int64_t(z) + k;
          bool in = cx >= 0 && cy >= 0 && cz >= 0 && uint64_t(cx) < m->dim[0] &&
                    uint64_t(cy) < m->dim[1] && uint64_t(cz) < m->dim[2];
          bf16 v{0};
          if (in)
            v = *reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(m->base) + cx * 2 +
                                               cy * m->stride_bytes[1] + cz * m->stride_bytes[2]);
          *reinterpret_cast<bf16*>(simt::g.b->smem + swizzle(off, m->swizzle)) = v;
        }
    mbar_complete(bar, m->box[0] * m->box[1] * m->box[2] * 2);
  });
}
inline void copy_bulk(void* dst, const void* src, uint32_t bytes, uint64_t* bar) {
  if ((shared_address(dst) | reinterpret_cast<uintptr_t>(src) | bytes) & 15)
    simt::die("bulk copy needs 16-byte alignment");
  issue_bulk([=] {
    std::memcpy(dst, src, bytes);
    mbar_complete(bar, bytes);
  });
}
template <int>
inline void grow_registers() {}
template <int>
inline void shrink_registers() {}
// wgmma: operations are recorded per warpgroup and executed when waited for (late) or when
// committed (eager)
template <int kN>
struct Wgmma {
  static constexpr int kRegs = kN / 2;
  static void issue(WgArg w, bool rs, bool trans, uint64_t site) {
    simt::warpgroup_all(site, &w, [=](void** a) {
      std::array<WgArg, 128> all;
      for (int i = 0; i < 128; ++i) {
        all[i] = *static_cast<WgArg*>(a[i]);
        if (all[i].db != all[0].db || all[i].da != all[0].da || all[i].acc != all[0].acc)
          simt::die("wgmma operands differ in the warpgroup");
      }
      auto& groups = simt::g.b->mma_groups[simt::g.cur->linear >> 7];
      groups.back().push_back({[=] { multiply_warpgroup(kN, all, rs, trans); }});
    });
  }
  template <int kT>
  __attribute__((noinline)) static void ss(float (&d)[kRegs], uint64_t a, uint64_t b, int acc,
                                           HERE) {
    issue({d, nullptr, a, b, acc}, false, kT, SITE());
  }
  template <int kT>
  __attribute__((noinline)) static void rs(float (&d)[kRegs], const uint32_t (&a)[4], uint64_t b,
                                           int acc, HERE) {
    issue({d, a, 0, b, acc}, true, kT, SITE());
  }
};
inline void run_group(std::vector<simt::AsyncOp>& grp) {
  for (auto& o : grp) o.run();
  grp.clear();
}
inline void wgmma_fence() {}
__attribute__((noinline)) inline void wgmma_commit(HERE) {
  simt::warpgroup_all(SITE(), nullptr, [](void**) {
    auto& q = simt::g.b->mma_groups[simt::g.cur->linear >> 7];
    q.emplace_back();
    if (simt::g.mma == simt::Async::kEager)
      while (simt::run_mma_one()) {
      }
  });
}
template <int kN>
__attribute__((noinline)) inline void wgmma_wait(HERE) {
  simt::warpgroup_all(SITE(), nullptr, [](void**) {});
  auto& q = simt::g.b->mma_groups[simt::g.cur->linear >> 7];
  simt::wait_until("wgmma", [&] { return q.size() <= size_t(kN) + 1; });
}
template <int kN>
inline void pin(float (&)[kN]) {}
template <int kN>
inline void pin(uint32_t (&)[kN]) {}
// sm_80
inline void copy_async16(void* dst, const void* src, bool valid) {
  if ((shared_address(dst) | reinterpret_cast<uintptr_t>(src)) & 15)
    simt::die("cp.async needs 16-byte alignment");
  auto f = [=] {
    if (valid)
      std::memcpy(dst, src, 16);
    else
      std::memset(dst, 0, 16);
  };
  if (simt::g.bulk == simt::Async::kEager ||
      (simt::g.bulk == simt::Async::kRandom && simt::g.rng() % 2))
    f();
  else
    simt::g.b->cp_groups[simt::g.cur->linear].back().push_back({f});
}
inline void copy_commit() { simt::g.b->cp_groups[simt::g.cur->linear].emplace_back(); }
template <int kN>
inline void copy_wait() {
  auto& q = simt::g.b->cp_groups[simt::g.cur->linear];
  while (q.size() > size_t(kN) + 1) {
    run_group(q.front());
    q.erase(q.begin());
  }
}
__attribute__((noinline)) inline void load_matrix(uint32_t (&r)[4], const void* p, HERE) {
  Ldm l{static_cast<const uint8_t*>(p), {}};
  simt::warp_all(SITE(), &l, [](void** a) { load_matrices(a, false); });
  std::memcpy(r, l.r, 16);
}
__attribute__((noinline)) inline void load_matrix_transposed(uint32_t (&r)[4], const void* p,
                                                             HERE) {
  Ldm l{static_cast<const uint8_t*>(p), {}};
  simt::warp_all(SITE(), &l, [](void** a) { load_matrices(a, true); });
  std::memcpy(r, l.r, 16);
}
__attribute__((noinline)) inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1, HERE) {
  Mma m{d, a, b0, b1};
  simt::warp_all(SITE(), &m, multiply_16x8x16);
}
inline uint64_t atomic_max(uint64_t* p, uint64_t v) {
  const uint64_t r = *p;
  *p = std::max(r, v);
  return r;
}
inline void thread_fence() {}
inline void wait_for_predecessors() { simt::wait_for_predecessors(); }
inline void launch_dependents() {
  if (!simt::g.cur->has_waited) simt::die("launch_dependents before wait_for_predecessors");
}
inline void prefetch_line(const void* p) {  // a sanitizer sees what is no memory
  static_cast<void>(*static_cast<const volatile uint8_t*>(p));
}
inline void prefetch_l2(const void* p, uint32_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0 || bytes % 16 != 0) simt::die("unaligned prefetch");
  for (uint32_t i = 0; i < bytes; i += 16) {  // so that a sanitizer sees what is no memory
    static_cast<void>(static_cast<const volatile uint8_t*>(p)[i]);
  }
}
inline float load_uncached(const float* p) { return *p; }
inline uint32_t load_uncached(const uint32_t* p) { return *p; }
inline float2 load_uncached(const float2* p) { return *p; }
inline float4 load_uncached(const float4* p) { return *p; }
inline uint4 load_stream(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) simt::die("unaligned load of 16 bytes");
  uint4 v;
  std::memcpy(&v, p, 16);
  return v;
}
inline uint4 load_once(const void* p) { return load_stream(p); }
inline uint4 load_host(const void* p) { return load_stream(p); }

}  // namespace tiercel::gpu
