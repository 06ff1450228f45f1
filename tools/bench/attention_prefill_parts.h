// The AMX kernel of prefill attention in parts and variants, for the benchmark, which has to explain what bounds it.
// Head dims 64 and 128 only; where no exp2 is named the lookup is used, whatever exact_exp says.
#pragma once

#include "cpu/attention_prefill.h"

namespace tiercel::cpu::prefill {

struct AmxBenchKernels {
  Kernel long_blocks;  // 256 keys between loading and storing O instead of 128; P fills L1
  Kernel long_slices;  // with head dim 128, 64 keys per step instead of 32
  Kernel products;     // no weights: P is what the buffer holds
  Kernel weights;      // no tile instruction: S is what the buffer holds
  Kernel exact_weights;
};
extern const AmxBenchKernels kAmxBenchKernels;

}  // namespace tiercel::cpu::prefill
