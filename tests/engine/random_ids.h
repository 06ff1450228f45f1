// Ids that any text might have, by the run's seed.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine/session.h"
#include "tests/seed.h"

namespace tiercel::test {

// salt: another text of the same run.
inline std::vector<int32_t> random_ids(const Model& model, int64_t n, uint64_t salt = 0) {
  std::mt19937_64 random(seed() + salt);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(random() % static_cast<uint64_t>(model.config().vocab_size));
  }
  return ids;
}

}  // namespace tiercel::test
