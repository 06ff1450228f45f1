// What an eviction head says of tokens and chunks, against fp64.
#include "cpu/key_bias.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/oracle/key_bias.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = std::vector<T>;

TEST(KeyBias, MakesTheBiasOfEveryToken) {
  cpu::Queue queue({.n_threads = 2});
  test::expect_key_biases<Memory>([&](const KeyBiasParams& p) { cpu::make_key_bias(queue, p); });
}

TEST(KeyBias, PoolsWindowsOfChunks) {
  cpu::Queue queue({.n_threads = 2});
  test::expect_pooled_biases<Memory>([&](const PoolBiasParams& p) { cpu::pool_key_bias(queue, p); });
}

}  // namespace
}  // namespace tiercel
