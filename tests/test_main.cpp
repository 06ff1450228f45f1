#include <gtest/gtest.h>

#include <cstdio>

#include "tests/seed.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::printf("seed: %llu (set TIERCEL_SEED to change it)\n",
              static_cast<unsigned long long>(tiercel::test::seed()));
  return RUN_ALL_TESTS();
}
