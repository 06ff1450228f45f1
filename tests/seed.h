// The seed of this test run: TIERCEL_SEED if set, else a fixed default. test_main.cpp prints it.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace tiercel::test {

inline uint64_t seed() {
  const char* text = std::getenv("TIERCEL_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 20261120;
}

}  // namespace tiercel::test
