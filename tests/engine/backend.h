// The backend of tests that run on more than one: the CPU, unless the program is built for another.
#pragma once

#include "engine/options.h"

namespace tiercel::test {

#if defined(TIERCEL_TEST_BACKEND)
inline constexpr BackendKind kBackend = BackendKind::TIERCEL_TEST_BACKEND;
#else
inline constexpr BackendKind kBackend = BackendKind::kCpu;
#endif

}  // namespace tiercel::test
