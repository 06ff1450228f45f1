// Where there is no GPU, a program that needs one runs no test, says so, and counts none as passed.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/stream.h"

namespace tiercel::test {
namespace {

class NeedsDevice : public testing::Environment {
 public:
  void SetUp() override {
    const cuda::Devices devices = cuda::find_devices();
    if (devices.n_devices > 0) return;
    std::printf("[  SKIPPED ] every test: NOT RUN ON A GPU: %s\n", devices.reason.c_str());
    std::fflush(stdout);
    std::exit(0);
  }
};

const auto* const kNeedsDevice = testing::AddGlobalTestEnvironment(new NeedsDevice);

}  // namespace
}  // namespace tiercel::test
