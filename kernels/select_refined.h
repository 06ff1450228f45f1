// Selections that are more than the best k means of a KV head: other indexes, blocks, one list for
// a layer, trimmed lists, lists that may stay. Internal to select.cu, which has the plain case;
// what is computed is SelectParams'.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

inline bool is_refined(const SelectParams& p) {
  return p.index != IndexKind::kMean || p.codes != nullptr || p.scope == SelectScope::kLayer ||
         p.blocks != nullptr || p.top_p > 0 || p.max_misses >= 0 || p.keep != nullptr;
}

void select_refined(Stream& stream, const SelectParams& params);

}  // namespace tiercel::cuda
