// Requests that come and go for as long as TIERCEL_LOAD_SECONDS says (a few seconds by default): memory
// stays flat, and nothing is left over.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <random>

#include "cpu/topology.h"
#include "engine/scheduler.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using Clock = std::chrono::steady_clock;

double load_seconds() {
  const char* text = std::getenv("TIERCEL_LOAD_SECONDS");
  return text != nullptr ? std::atof(text) : 6;
}

TEST(Load, MemoryStaysFlat) {
  const auto model = Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m",
                                 {.backend = BackendKind::kCpu, .n_threads = 2});
  SessionOptions options = test::two_tiers();
  options.selection.budget = 64;
  options.selection.recent = 32;
  options.selection.outliers = 4;
  options.selection.key_codec = KeyCodec::kInt8;
  const int64_t longest = test::kSanitized ? 200 : 600;
  Scheduler scheduler(Batch::open(model, Batch::plan(*model, options, 6, longest, 32)), {0.01});
  const int64_t device = scheduler.batch().device_bytes(), host = scheduler.batch().host_bytes();
  std::mt19937_64 random(test::seed());
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int64_t n_sent = 0, n_ended = 0, n_waiting = 0;
  const auto send = [&] {
    Request request;
    request.prompt.resize(static_cast<size_t>(pick(1, longest)));
    for (int32_t& id : request.prompt) {
      id = static_cast<int32_t>(pick(0, model->config().vocab_size - 1));
    }
    request.n_new = pick(1, 32);
    const int64_t stop_at = pick(0, 3) == 0 ? pick(1, 16) : -1;
    request.on_token = [n = int64_t{0}, stop_at](int32_t, const TokenLogprobs*) mutable { return ++n != stop_at; };
    const auto id = std::make_shared<Scheduler::RequestId>();
    request.on_end = [&, id](const RequestReport&) {
      scheduler.forget(*id);  // as a server would
      ++n_ended;
      --n_waiting;
    };
    *id = scheduler.submit(std::move(request));
    ++n_sent;
    ++n_waiting;
  };
  const auto begin = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const double wanted = load_seconds();
  int64_t warm = 0;
  while (seconds() < wanted || warm == 0) {
    while (n_waiting < 10) send();
    scheduler.turn();
    if (warm == 0 && seconds() > wanted / 3) warm = cpu::current_rss_bytes();
  }
  while (scheduler.turn()) {
  }
  EXPECT_EQ(n_ended, n_sent);
  EXPECT_EQ(scheduler.report().ended, n_sent);
  EXPECT_EQ(scheduler.batch().device_bytes(), device);
  EXPECT_EQ(scheduler.batch().host_bytes(), host);
  const int64_t growth = cpu::current_rss_bytes() - warm;
  if (!test::kSanitized) {  // whose allocators keep what is freed
    EXPECT_LT(growth, int64_t{8} << 20) << n_sent << " requests";
  }
  RecordProperty("requests", static_cast<int>(n_sent));
  std::printf("%lld requests in %.0f s; resident memory grew by %.2f MiB\n",
              static_cast<long long>(n_sent), seconds(),
              static_cast<double>(growth) / (1 << 20));
}

}  // namespace
}  // namespace tiercel
