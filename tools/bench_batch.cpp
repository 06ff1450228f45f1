#include "tools/bench_batch.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/batch_plan.h"
#include "engine/scheduler.h"
#include "tools/progress.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {

const char* name_of(BenchRival rival) {
  switch (rival) {
    case BenchRival::kNone: return "-";
    case BenchRival::kDense: return "dense";
    case BenchRival::kDevice: return "device";
  }
  return "?";
}

SessionOptions options_of(BenchRival rival, SessionOptions options) {
  if (rival == BenchRival::kDense) {
    options.attention = AttentionMode::kDense;
    options.strict = false;  // what it has no use for is meant for the other one
  }
  if (rival == BenchRival::kDevice) options.value_home = ValueHome::kDevice;
  return options;
}

namespace {

BatchPlan plan_test(const Model& model, const SessionOptions& options, const BatchTest& test,
                    int64_t n_sequences) {
  return Batch::plan(model, options_of(test.rival, options), n_sequences,
                     test.n_shared() + test.n_own(), test.n_new(),
                     test.n_shared() > 0 ? test.n_own() + test.n_new() : 0);
}

}  // namespace

int64_t largest_batch(const Model& model, const SessionOptions& options, const BatchTest& test,
                      int64_t most, std::string* why) {
  // Codecs that are chosen by what fits make more sequences fit where more are asked for.
  const auto fits = [&](int64_t n) {
    const BatchPlan plan = plan_test(model, options, test, n);
    return Batch::largest(model, plan, test.n_own(), test.n_new(), test.n_shared()) >= n;
  };
  try {
    int64_t low = 0, high = most + 1;  // low fits, high does not
    while (high - low > 1) {
      const int64_t middle = low == 0 ? 1 : std::min(2 * low, (low + high) / 2);
      (fits(middle) ? low : high) = middle;
    }
    return low;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDoesNotFit) throw;
    *why = error.what();
    return 0;
  }
}

BatchRow measure_batch(const std::shared_ptr<Model>& model, const SessionOptions& options,
                       MicroBatches micro_batches, const BatchTest& test, int64_t n_sequences,
                       const SharedPrefix& prefix,
                       const std::function<std::vector<int32_t>(int64_t)>& prompts,
                       const Console& console) {
  BatchRow row;
  row.test = test;
  row.n_sequences = n_sequences;
  if (n_sequences == 0) return row;
  BatchPlan plan = plan_test(*model, options, test, n_sequences);
  plan.micro_batches = micro_batches;
  row.plan = plan.largest;
  Stopwatch watch;
  ProgressLine line(console);
  Scheduler* running = nullptr;
  const auto show_prompts = [&] {
    const SchedulerReport now = running->report();
    const int64_t n_all = test.prompt_tokens(n_sequences);
    const auto n_done = now.prompt_tokens + static_cast<int64_t>(now.partial_prompt_tokens);
    if (n_done >= n_all) return;
    const double share = static_cast<double>(n_done) / static_cast<double>(n_all);
    line.update({"prefill", share, n_done, n_all, watch.seconds()});
  };
  Scheduler scheduler(Batch::open(model, plan), {.go_on = [&] {
                        show_prompts();
                        return !stop_requested();
                      }});
  running = &scheduler;
  row.backend = scheduler.batch().backend_description();
  row.micro_batches = scheduler.batch().micro_batches(n_sequences);
  std::vector<Scheduler::RequestId> ids;
  for (int64_t i = 0; i < row.n_sequences; ++i) {
    ids.push_back(scheduler.submit({.prefix = prefix,
                                    .prompt = prompts(i),
                                    .n_new = test.n_new(),
                                    .on_token = [](int32_t, const TokenLogprobs*) { return !stop_requested(); }}));
  }
  bool more = true;
  while (more) {
    const SchedulerReport before = scheduler.report();
    more = scheduler.turn();
    const SchedulerReport after = scheduler.report();
    if (after.steps > before.steps) {
      row.token_seconds.push_back(after.step_seconds - before.step_seconds);
      row.step_launches = std::max(row.step_launches, scheduler.batch().step_launches());
      row.replayed_steps += scheduler.batch().replayed() ? 1 : 0;
    }
    row.device_bytes = std::max(row.device_bytes, scheduler.batch().device_bytes());
    row.host_bytes = std::max(row.host_bytes, scheduler.batch().host_bytes());
    stop_if_requested();
  }
  const SchedulerReport total = scheduler.report();
  row.prompt_seconds = total.prefill_seconds;
  row.step_seconds = total.step_seconds;
  row.step_tokens = total.step_tokens;
  for (const Scheduler::RequestId id : ids) {
    const RequestReport report = scheduler.report(id);
    if (report.state != RequestState::kFinished) fail(report.error_kind, "{}", report.error);
    const SelectionReport& s = report.selection;
    row.selection.steps += s.steps;
    row.selection.selected_chunks += s.selected_chunks;
    row.selection.hit_chunks += s.hit_chunks;
    row.selection.fetched_bytes += s.fetched_bytes;
    row.selection.decisions += s.decisions;
    row.selection.reused += s.reused;
  }
  return row;
}

}  // namespace tiercel
