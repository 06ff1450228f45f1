// tiercel estimate: the memory that a run would take, what would be the most that fits, and the least
// time of a decode step; from config.json alone.
#include <algorithm>
#include <functional>
#include <optional>

#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/batch_plan.h"
#include "engine/cost_model.h"
#include "engine/session_plan.h"
#include "engine/weights.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/report.h"
#include "tools/session_flags.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

// The largest n of 1 .. most that fits, as larger ones do not either; 0: none.
int64_t largest_that(int64_t most, const std::function<bool(int64_t)>& fits_so_many) {
  int64_t low = 0, high = 1;
  while (high <= most && fits_so_many(high)) low = high, high *= 2;
  high = std::min(high, most + 1);
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits_so_many(middle) ? low : high) = middle;
  }
  return low;
}

template <typename F>
bool fits(F&& plan) {
  try {
    return plan();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDoesNotFit) throw;
    return false;
  }
}

// The plan of so many sequences. n_behind: tokens that each has behind the prompt, which then all of them
// share; 0: each has a prompt of its own.
BatchPlan plan_sequences(const PlanRequest& request, int64_t n, int64_t n_behind) {
  const int64_t n_own = n_behind > 0 ? n_behind + request.n_new : 0;
  return plan_batch(request, request.options, n, request.n_prompt + n_behind, request.n_new, n_own);
}

SessionPlan plan_of_one(const PlanRequest& request, const BatchPlan& plan, int64_t n_behind) {
  if (n_behind == 0) return plan.largest;
  return plan_behind_prefix(plan, plan_prefix_in_batch(request, plan, request.n_prompt), n_behind,
                            request.n_new, 0);
}

// The most sequences that fit the limits, each number with the codecs that make it fit.
int64_t most_sequences(const PlanRequest& request, int64_t n_behind) {
  return largest_that(kMaxSequences, [&](int64_t n) {
    return fits([&] {
      const BatchPlan plan = plan_sequences(request, n, n_behind);
      const bool shares = n_behind > 0;
      return largest_in_batch(request, plan, shares ? n_behind : request.n_prompt, request.n_new,
                              shares ? request.n_prompt : 0) >= n;
    });
  });
}

void print_most(const PlanRequest& request, int64_t n_behind, const Console& console) {
  const int64_t context = largest_that(int64_t{1} << 33, [&](int64_t tokens) {
    PlanRequest longer = request;
    longer.n_prompt = tokens;
    longer.options.context = 0;
    longer.options.strict = false;  // of memory; what is asked for has been judged
    return fits([&] {
      check_limits(longer, make_plan(longer));
      return true;
    });
  });
  console.info("most that fits: one prompt of {} tokens, or {} sequences of {}{}",
               format_count(context), format_count(most_sequences(request, 0)),
               format_count(request.n_prompt),
               n_behind > 0 ? fmt::format(", or {} that share them and have {} each behind them",
                                          format_count(most_sequences(request, n_behind)),
                                          format_count(n_behind))
                            : "");
}

struct FloorFlags {
  std::optional<double> device, link, host;
  double hit_rate = kExpectedHitRate;

  void add_to(Flags& flags) {
    flags.section("Floor of a decode step (bytes that must move, over bandwidth)");
    flags.number("--device-bandwidth", device, 0.001, 1e6, "GB/s of the device's memory");
    flags.number("--link-bandwidth", link, 0.001, 1e6, "GB/s between host and device");
    flags.number("--host-bandwidth", host, 0.001, 1e6, "GB/s at which the host attends");
    flags.number("--hit-rate", hit_rate, 0, 1, "Share of what is selected that needs no fetch");
  }

  // Of one sequence, and of as many as fit.
  void print(const PlanRequest& request, const SessionPlan& plan, int64_t n_behind,
             const Console& console) const {
    if (!device) return;
    const int64_t most = most_sequences(request, n_behind);
    for (const int64_t n : {int64_t{1}, most}) {
      SessionPlan its = plan;
      if (n > 1) its = plan_of_one(request, plan_sequences(request, n, n_behind), n_behind);
      const StepBytes bytes = step_bytes(request.config, its, hit_rate);
      if (bytes.link > 0 && !link) {
        fail(ErrorKind::kUsage, "--device-bandwidth: expected --link-bandwidth beside it, as values "
             "live on the host");
      }
      if (bytes.host > 0 && !host) {
        fail(ErrorKind::kUsage, "--device-bandwidth: expected --host-bandwidth beside it, as the host "
             "attends");
      }
      const Bandwidths bandwidths = {*device * 1e9, link.value_or(1) * 1e9, host.value_or(1) * 1e9};
      const StepFloor floor = step_floor(bytes, bandwidths, n);
      const auto text = [&](double seconds) {
        return fmt::format("{:.3g} ms, {} tokens/s", 1e3 * seconds,
                           format_rate(static_cast<double>(n) / seconds));
      };
      console.info(
          "floor, {} sequence{}: {} with fetches beside the rest{}, {} one after the other (computed)",
          n, n == 1 ? "" : "s", text(floor.overlapped), floor.link_bound ? " (link-bound)" : floor.host_bound ? " (host-bound)" : "",
          text(floor.serial));
      console.info("  a step moves {} of weights{}, and per sequence {} on the device, {} over the link{}",
                   format_bytes(bytes.weights),
                   bytes.shared > 0 ? ", " + format_bytes(bytes.shared) + " of the shared prompt's index" : "",
                   format_bytes(bytes.device), format_bytes(bytes.link),
                   bytes.host > 0 ? ", " + format_bytes(bytes.host) + " on the host" : "");
      if (splitting_gains(bytes, bandwidths, n)) {
        console.info("  layer by layer, as a batch runs: {} in one part, {} in two micro-batches",
                     text(floor.joined), text(floor.split));
      }
      if (most <= 1) break;
    }
  }
};

}  // namespace

int command_estimate(int argc, char** argv) {
  ModelFlags model_flags;
  SessionOptions options;
  int64_t n_prompt = 0, n_predict = 128, n_behind = 0;
  FloorFlags floor;
  Flags flags("estimate", "The memory that a run would take. Reads config.json only.",
              "The table goes to stderr, as with run. Exit code 3: it does not fit.\n"
              "With --device-bandwidth it also says how long a decode step must take: no kernel is that\n"
              "fast, and none is faster.\n"
              "\n"
              "Examples:\n"
              "  tiercel estimate -m MODEL --tokens 1000000 --device-memory 24GiB\n"
              "  tiercel estimate --synthetic llama-3.1-8b --backend cuda --tokens 131072 \\\n"
              "    --device-memory 135GiB --host-memory 200GiB --device-bandwidth 4000 \\\n"
              "    --link-bandwidth 50\n");
  model_flags.add_to(flags, /*with_synthetic=*/true);
  flags.section("Prompt");
  flags.tokens("--tokens", n_prompt, 0, kMaxOptionTokens,
               "Tokens of the prompt; 0: all of the model's positions");
  flags.tokens("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, 0, INT32_MAX,
               "Tokens to generate");
  flags.tokens("--behind", n_behind, 0, kMaxOptionTokens,
               "Of sequences that share the prompt: tokens that each has behind it");
  floor.add_to(flags);
  add_session_flags(flags, options);
  if (!flags.parse(argc, argv)) return 0;
  const StopsAtOnce at_once;
  model_flags.check(/*needs_backend=*/false);
  const ModelConfig config = model_flags.config();
  if (n_prompt == 0) {
    n_prompt = options.context > 0 ? options.context : config.max_position_embeddings;
    n_prompt -= n_predict;
  }
  if (n_prompt <= 0) fail(ErrorKind::kUsage, "--tokens: expected more than 0, found {}", n_prompt);

  PlanRequest request{.config = config, .backend = model_flags.backend(), .options = options};
  request.weight_bytes = parameter_count(config) * static_cast<int64_t>(sizeof(bf16));
  request.weights_resident = false;
  request.this_machine = options.host_memory == 0;  // else it stands for another one
  request.n_prompt = n_prompt;
  request.n_new = n_predict;
  request.n_threads = model_flags.n_threads > 0 ? static_cast<int>(model_flags.n_threads)
                                                : cpu::topology().n_cores;
  const SessionPlan plan = make_plan(request);
  const Console console(false);
  print_plan(plan, n_prompt, console);
  print_most(request, n_behind, console);
  check_limits(request, plan);
  floor.print(request, plan, n_behind, console);
  return 0;
}

}  // namespace tiercel
