// What an eviction head says of tokens and chunks, against fp64.
#include "kernels/key_bias.h"

#include <gtest/gtest.h>

#include "tests/kernels/device_vector.h"
#include "tests/oracle/key_bias.h"

namespace tiercel {
namespace {

TEST(CudaKeyBias, MakesTheBiasOfEveryToken) {
  test::expect_key_biases<test::DeviceVector>([](const KeyBiasParams& p) {
    cuda::make_key_bias(test::stream(), p);
    test::stream().finish();
  });
}

TEST(CudaKeyBias, PoolsWindowsOfChunks) {
  test::expect_pooled_biases<test::DeviceVector>([](const PoolBiasParams& p) {
    cuda::pool_key_bias(test::stream(), p);
    test::stream().finish();
  });
}

}  // namespace
}  // namespace tiercel
