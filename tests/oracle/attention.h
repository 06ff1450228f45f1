// Prefill attention in fp64, straight from its definition (engine/base/ops/attention.h): two passes, no
// tricks. Also predicts how far a kernel may be off, from what the kernel rounds.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/ops.h"

namespace tiercel::test {

// Relative rms of what a kernel rounds. A bf16 rounding has rms 0.00166 over uniformly spread
// mantissas.
inline constexpr double kBf16Rms = 0.00166;
struct AttendRounding {
  double weight = 0;  // of a weight: 0.0024 lookup, kBf16Rms polynomial and bf16, 0 in fp32
  double query = 0;   // of the scaled query: kBf16Rms or 0
};

struct AttendRow {
  std::vector<double> out;  // [head_dim]
  double error_rms = 0;     // predicted, over the channels of this row, the final bf16 included
};

inline double value(bf16 x) { return static_cast<double>(static_cast<float>(x)); }

// Attention of query t, query head h. The error of the output is, to first order,
//   sum_i p_i (e_i + ln2 d_i) (v_i - out),   e_i: relative error of weight i, d_i: error of score
//   i,
// with independent e_i and d_i = sum_c q_c k_ic r_c over relative errors r_c of the query.
AttendRow attend_row(const PrefillAttendParams& p, int64_t t, int64_t h,
                     const AttendRounding& rounding = {});

}  // namespace tiercel::test
