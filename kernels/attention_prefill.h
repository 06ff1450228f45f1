// Prefill attention on a GPU: causal, windowed, or over selected chunks (PrefillAttendParams).
//
// Two kernels: wgmma and the tensor copy engine where the stream's architecture is exactly 9.0, rows
// are multiples of 16 bytes and keys have no bias; mma.sync and cp.async everywhere else. A third,
// small one computes rows again that came out non-finite (key by key, in fp64), so that a NaN or an
// infinity reaches the queries that see it and no others, as in cpu/.
//
// exact_exp changes nothing here: the hardware's ex2.approx on fp32 is within 2 ulp already.
//
// A row's bits do not depend on how the queries of a prompt are cut into calls: keys are met in
// tiles that begin at multiples of the tile in the key list, from the last tile down.
#pragma once

#include <cstdint>

namespace tiercel {
struct PrefillAttendParams;
struct bf16;
}  // namespace tiercel

namespace tiercel::cuda {

class Stream;

void attend_prefill(Stream& stream, const PrefillAttendParams& params);

// Which kernel, for tests and benchmarks. The last three are the same Hopper kernel in three
// schedules:
//   kPlain     each product is waited for at once
//   kOverlap   the softmax of a tile runs while the values of the tile before are multiplied
//   kPingPong  the same, and two warpgroups take turns at the tensor cores
enum class PrefillVariant : uint8_t { kDefault, kMmaSync, kPlain, kOverlap, kPingPong };

// A Hopper variant on a stream or a shape without it is a failed CHECK. Without finish, rows that
// came out non-finite keep a NaN in their first element: a test of finite input wants to know.
void attend_prefill_with(Stream& stream, const PrefillAttendParams& params, PrefillVariant variant,
                         bool finish = true);

// What the Hopper kernel assumes of the hardware, for tests (kernels/attention_prefill_probe.cuh):
//   scores = Q K^T,  out = bf16(scores) V;  all [64][n] with n = swizzle bytes, 128 or 64.
struct PrefillProbe {
  const bf16* queries = nullptr;
  const bf16* keys = nullptr;
  const bf16* values = nullptr;
  float* scores = nullptr;  // [64][64]
  float* out = nullptr;     // [64][n]
  int32_t swizzle = 128;
};
void probe_prefill(Stream& stream, const PrefillProbe& probe);

}  // namespace tiercel::cuda
