// The kernels of an instruction-set level: attention of a decode step, selection, landmarks, coded
// rows. The last two are bound by memory wherever a core has AVX-512: there kAmx takes the kernels
// of the level below it.
#pragma once

#include "cpu/decode_kernel.h"
#include "cpu/isa.h"
#include "cpu/landmark_kernel.h"
#include "cpu/row_codec.h"
#include "cpu/select_kernel.h"

namespace tiercel::cpu {

inline const DecodeKernel& decode_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return kDecodeAmx;
  if (isa == Isa::kAvx512Bf16) return kDecodeAvx512Bf16;
  if (isa >= Isa::kAvx512) return kDecodeAvx512;
  if (isa == Isa::kAvx2) return kDecodeAvx2;
#endif
  static_cast<void>(isa);
  return kDecodePortable;
}

inline const SelectKernel& select_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return kSelectAmx;
  if (isa == Isa::kAvx512Bf16) return kSelectAvx512Bf16;
  if (isa == Isa::kAvx512Vnni) return kSelectAvx512Vnni;
  if (isa == Isa::kAvx512) return kSelectAvx512;
  if (isa == Isa::kAvx2) return kSelectAvx2;
#endif
  static_cast<void>(isa);
  return kSelectPortable;
}

inline const LandmarkKernel& landmark_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kLandmarkAvx512;
  if (isa == Isa::kAvx2) return kLandmarkAvx2;
#endif
  static_cast<void>(isa);
  return kLandmarkPortable;
}

inline const RowCodecKernel& row_codec_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kRowCodecAvx512;
  if (isa == Isa::kAvx2) return kRowCodecAvx2;
#endif
  static_cast<void>(isa);
  return kRowCodecPortable;
}

}  // namespace tiercel::cpu
