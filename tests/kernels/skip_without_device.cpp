// Skips, loudly, every test of a program that needs a GPU where there is none.
#include <gtest/gtest.h>

#include "kernels/stream.h"

namespace tiercel::test {
namespace {

class NeedsDevice : public testing::Environment {
 public:
  void SetUp() override {
    const cuda::Devices devices = cuda::find_devices();
    if (devices.n_devices == 0) GTEST_SKIP() << "NOT RUN ON A GPU: " << devices.reason;
  }
};

const auto* const kNeedsDevice = testing::AddGlobalTestEnvironment(new NeedsDevice);

}  // namespace
}  // namespace tiercel::test
