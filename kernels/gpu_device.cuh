// The device half of kernels/gpu.cuh: inline PTX for sm_80 and later; Hopper's own instructions
// assemble for sm_90a only and are used inside TIERCEL_HOPPER_BODY.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#define GPU __device__ __forceinline__
#define GPU_AND_HOST __host__ __device__ __forceinline__
#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define GRID_CONST __grid_constant__
#define SHARED(name) extern __shared__ __align__(1024) uint8_t name[]

// Bodies that need wgmma, setmaxnreg or the bulk copy engine: empty in code for other architectures,
// which the launcher never starts (it dispatches on compute capability 9.0 exactly).
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define TIERCEL_HOPPER_BODY 1
#else
#define TIERCEL_HOPPER_BODY 0
#endif

namespace tiercel::gpu {

using TensorMap = CUtensorMap;

GPU uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
GPU float bits_to_float(uint32_t u) { return __uint_as_float(u); }
GPU uint32_t float_to_bits(float x) { return __float_as_uint(x); }
// 2^x to about 2 ulp; denormal results are 0; 2^-inf = 0.
GPU float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Never contracted with a neighbouring addition.
GPU float mul_rn(float a, float b) { return __fmul_rn(a, b); }
GPU float add_rn(float a, float b) { return __fadd_rn(a, b); }
GPU double mul_rn(double a, double b) { return __dmul_rn(a, b); }
GPU double add_rn(double a, double b) { return __dadd_rn(a, b); }
GPU double bits_to_double(uint64_t u) {
  return __longlong_as_double(static_cast<long long>(u));
}
// 1 / x to 1 ulp; denormal results are 0.
GPU float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// log2 of a positive number: 2^-22 of the result or of 1, whichever is more.
GPU float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GPU float half_to_float(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
// low | high << 16, each rounded to nearest even.
GPU uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// The four int8 of a word as two pairs of bf16, exactly: x = (128 + its low 7 bits) - (128, or 256 where
// its sign is set), where each term is a bf16 that holds those bits as they are.
GPU void int8_to_bf16(uint32_t four, uint32_t& first, uint32_t& second) {
  const uint32_t pairs[2] = {__byte_perm(four, 0, 0x4140), __byte_perm(four, 0, 0x4342)};
  uint32_t values[2];
  for (int i = 0; i < 2; ++i) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(values[i])
        : "r"((pairs[i] & 0x007f007fu) | 0x43004300u), "r"(0x3f803f80u),
          "r"((pairs[i] & 0x00800080u) | 0xc300c300u));
  }
  first = values[0];
  second = values[1];
}

// ---- barriers and warp collectives --------------------------------------------------------------
GPU void sync_threads() { __syncthreads(); }
GPU void sync_warp() { __syncwarp(); }
// Named barriers 1..15; n counts threads.
GPU void bar_sync(int id, int n) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
GPU void bar_arrive(int id, int n) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}
GPU float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
GPU uint32_t shuffle_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
GPU uint32_t shuffle_up(uint32_t v, int delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
GPU uint32_t shuffle(uint32_t v, int source) { return __shfl_sync(0xffffffffu, v, source); }
GPU uint32_t ballot(bool p) { return __ballot_sync(0xffffffffu, p); }
GPU int popcount(uint32_t x) { return __popc(x); }

// ---- memory -------------------------------------------------------------------------------------
GPU uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
GPU uint64_t atomic_add(uint64_t* p, uint64_t v) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
// An addition in global memory that also is a release of what this thread, and others before a barrier
// with it, have written, and an acquire of what others released: cheaper than two fences around it.
GPU uint32_t atomic_add_ordered(uint32_t* p, uint32_t v) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(p)), "r"(v)
               : "memory");
  return before;
}
GPU void atomic_or(uint32_t* p, uint32_t v) { atomicOr(p, v); }
GPU uint64_t atomic_max(uint64_t* p, uint64_t v) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
// Orders this thread's global writes before its later ones, for every block of the grid.
GPU void thread_fence() { __threadfence(); }
// A load that skips L1, for what another block of this grid has written.
GPU float load_uncached(const float* p) { return __ldcg(p); }
GPU uint32_t load_uncached(const uint32_t* p) { return __ldcg(p); }
GPU float2 load_uncached(const float2* p) { return __ldcg(p); }
GPU float4 load_uncached(const float4* p) { return __ldcg(p); }
// 16 bytes read once: not kept in L1. The address is a multiple of 16. For what no kernel writes
// between the start of this kernel's predecessor and the end of this kernel.
GPU uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// The same of what predecessors may have written.
GPU uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// The same from host memory that the device maps: no hint to fetch more over the bus than was asked.
GPU uint4 load_host(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Starts to bring the line of 128 bytes around p into L2: a hint.
GPU void prefetch_line(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)) : "memory");
}

// ---- overlap with the kernels before and after --------------------------------------------------
// The rules: kernels/launch.cuh. Before Hopper kernels follow one another, and these do nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
GPU void wait_for_predecessors() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
GPU void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
// Starts to bring memory into L2: a hint. Address and bytes are multiples of 16.
GPU void prefetch_l2(const void* p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}
#else
GPU void wait_for_predecessors() {}
GPU void launch_dependents() {}
GPU void prefetch_l2(const void*, uint32_t) {}
#endif

// ---- mbarrier -----------------------------------------------------------------------------------
GPU void mbar_init(uint64_t* b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
               : "memory");
}
GPU void mbar_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
#if TIERCEL_HOPPER_BODY
GPU void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
GPU void mbar_expect_bytes(uint64_t* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity has completed.
GPU void mbar_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

// ---- bulk copies (sm_90) ------------------------------------------------------------------------
// The box of the map at (x, y, z), innermost first, to shared memory; announces its bytes to bar.
GPU void copy_box_3d(void* target, const TensorMap* m, int x, int y, int z, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(target)),
      "l"(m), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// bytes: a multiple of 16, as both addresses.
GPU void copy_bulk(void* target, const void* source, uint32_t bytes, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(target)),
      "l"(source), "r"(bytes), "r"(shared_address(bar))
      : "memory");
}
template <int kRegs>
GPU void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegs));
}
template <int kRegs>
GPU void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegs));
}

// ---- wgmma (sm_90a) -----------------------------------------------------------------------------
GPU void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
GPU void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
GPU void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of accumulators across an asynchronous product.
template <int kN>
GPU void pin(float (&d)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// The same for an operand in registers.
template <int kN>
GPU void pin(uint32_t (&a)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+r"(a[i])::"memory");
}
#endif

// ---- sm_80: cp.async, ldmatrix, mma.sync --------------------------------------------------------
// 16 bytes to shared memory; zeros when not valid (source is not read then).
GPU void copy_async16(void* target, const void* source, bool valid) {
  const int n = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                   shared_address(target)),
               "l"(source), "r"(n)
               : "memory");
}
GPU void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// A lane sees its own copies only: a warp or block barrier must follow.
template <int kPending>
GPU void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
GPU void load_matrix(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
GPU void load_matrix_transposed(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
// d[16][8] += a[16][16] b[16][8]; bf16 operands, fp32 sums.
GPU void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace tiercel::gpu

#if TIERCEL_HOPPER_BODY
#include "kernels/wgmma.cuh"
#endif
