// The selection kernel of an instruction-set level.
#pragma once

#include "cpu/isa.h"
#include "cpu/select_kernel.h"

namespace tiercel::cpu {

inline const SelectKernel& select_kernel(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable: return kSelectPortable;
    case Isa::kAvx2: return kSelectAvx2;
    case Isa::kAvx512: return kSelectAvx512;
    case Isa::kAvx512Bf16:
    case Isa::kAmx: return kSelectAvx512Bf16;
  }
#endif
  static_cast<void>(isa);
  return kSelectPortable;
}

}  // namespace tiercel::cpu
