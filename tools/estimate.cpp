// tiercel estimate: the memory that a run would take, what would be the most that fits, and the least
// time of a decode step; from config.json alone.
#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "cpu/topology.h"
#include "engine/base/build_info.h"
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

using Json = nlohmann::ordered_json;

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
  return plan_behind_prefix(request, plan, plan_prefix_in_batch(request, plan, request.n_prompt), n_behind,
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

// The most that fits the limits.
struct Most {
  int64_t context = 0;           // tokens of one prompt
  int64_t sequences = 0;         // with prompts of their own
  int64_t sequences_behind = 0;  // that share the prompt
};

Most most_that_fits(const PlanRequest& request, int64_t n_behind) {
  Most most;
  most.context = largest_that(int64_t{1} << 33, [&](int64_t tokens) {
    PlanRequest longer = request;
    longer.n_prompt = tokens;
    longer.options.context = 0;
    longer.options.strict = false;  // of memory; what is asked for has been judged
    return fits([&] {
      check_limits(longer, make_plan(longer));
      return true;
    });
  });
  most.sequences = most_sequences(request, 0);
  if (n_behind > 0) most.sequences_behind = most_sequences(request, n_behind);
  return most;
}

void print(const Most& most, int64_t n_prompt, int64_t n_behind, const Console& console) {
  const auto count = [](int64_t n) {
    return format_count(n) + (n == kMaxSequences ? " (more are never decoded together)" : "");
  };
  console.info("most that fits: one prompt of {} tokens, or {} sequences of {}{}",
               format_count(most.context), count(most.sequences), format_count(n_prompt),
               n_behind > 0 ? fmt::format(", or {} that share them and have {} each behind them",
                                          count(most.sequences_behind), format_count(n_behind))
                            : "");
}

// The least time of a step of so many sequences.
struct Floor {
  int64_t n = 0;
  StepBytes bytes;
  StepFloor step;
  bool splitting_gains = false;
};

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

  Floor of(int64_t n, const PlanRequest& request, const SessionPlan& plan) const {
    Floor floor;
    floor.n = n;
    floor.bytes = step_bytes(request.config, plan, hit_rate);
    if (floor.bytes.link + floor.bytes.link_weights > 0 && !link) {
      fail(ErrorKind::kUsage, "--device-bandwidth: expected --link-bandwidth beside it, as values or "
           "weights live on the host");
    }
    if (floor.bytes.host > 0 && !host) {
      fail(ErrorKind::kUsage, "--device-bandwidth: expected --host-bandwidth beside it, as the host "
           "attends");
    }
    const Bandwidths bandwidths = {*device * 1e9, link.value_or(1) * 1e9, host.value_or(1) * 1e9};
    floor.step = step_floor(floor.bytes, bandwidths, n);
    floor.splitting_gains = splitting_gains(floor.bytes, bandwidths, n);
    return floor;
  }

  // Of one sequence, and of as many as fit; empty without bandwidths.
  std::vector<Floor> all(const PlanRequest& request, const SessionPlan& plan, int64_t n_behind,
                         const Most& most) const {
    if (!device) return {};
    std::vector<Floor> floors = {of(1, request, plan)};
    const int64_t n = n_behind > 0 ? most.sequences_behind : most.sequences;
    if (n > 1) {
      const BatchPlan batch = plan_sequences(request, n, n_behind);
      floors.push_back(of(n, request, plan_of_one(request, batch, n_behind)));
    }
    return floors;
  }
};

void print(const Floor& floor, const Console& console) {
  const auto& [n, bytes, step, splitting_gains] = floor;
  const auto text = [n = n](double seconds) {
    return fmt::format("{:.3g} ms, {} tokens/s", 1e3 * seconds,
                       format_rate(static_cast<double>(n) / seconds));
  };
  console.info(
      "floor, {} sequence{}: {} with fetches beside the rest{}, {} one after the other (computed)", n,
      n == 1 ? "" : "s", text(step.overlapped),
      step.link_bound ? " (link-bound)" : step.host_bound ? " (host-bound)" : "", text(step.serial));
  console.info("  a step moves {} of weights{}{}, and per sequence {} on the device, {} over the link{}",
               format_bytes(bytes.weights_read(n) + bytes.link_weights_read(n)),
               bytes.link_weights > 0 ? ", " + format_bytes(bytes.link_weights_read(n)) + " of those over the link" : "",
               bytes.shared > 0 ? ", " + format_bytes(bytes.shared) + " of the shared prompt's index" : "",
               format_bytes(bytes.device), format_bytes(bytes.link),
               bytes.host > 0 ? ", " + format_bytes(bytes.host) + " on the host" : "");
  if (splitting_gains) {
    console.info("  layer by layer, as a batch runs: {} in one part, {} in two micro-batches",
                 text(step.joined), text(step.split));
  }
}

Json floor_json(const Floor& floor, double hit_rate) {
  const auto& [n, bytes, step, splitting_gains] = floor;
  return {{"sequences", n},
          {"hit_rate", hit_rate},
          {"weight_bytes", bytes.weights_read(n)},
          {"link_weight_bytes", bytes.link_weights_read(n)},
          {"head_bytes", bytes.head},
          // Of the model, where either is; a step reads some of them.
          {"expert_bytes", bytes.experts},
          {"link_expert_bytes", bytes.link_experts},
          {"expert_share", bytes.expert_share},
          {"shared_bytes", bytes.shared},
          {"device_bytes_per_sequence", bytes.device},
          {"link_bytes_per_sequence", bytes.link},
          {"host_bytes_per_sequence", bytes.host},
          {"overlapped_seconds", step.overlapped},
          {"serial_seconds", step.serial},
          {"layers_joined_seconds", step.joined},
          {"layers_split_seconds", step.split}};
}

}  // namespace

int command_estimate(int argc, char** argv) {
  ModelFlags model_flags;
  SessionOptions options;
  int64_t n_prompt = 0, n_predict = 128, n_behind = 0;
  FloorFlags floor_flags;
  Flags flags("estimate", "The memory that a run would take. Reads config.json only.",
              "The table goes to stderr, as with run. Exit code 3: it does not fit, and there is no\n"
              "JSON.\n"
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
  bool json = false;
  flags.flag("--json", json, "Print one JSON object");
  floor_flags.add_to(flags);
  add_session_flags(flags, options);
  if (!flags.parse(argc, argv)) return 0;
  const StopsAtOnce at_once;
  model_flags.check(/*needs_backend=*/false);
  ModelConfig config = model_flags.config();
  if (n_prompt == 0) {
    n_prompt = options.context > 0 ? options.context : config.max_position_embeddings;
    n_prompt -= n_predict;
  }
  if (n_prompt <= 0) fail(ErrorKind::kUsage, "--tokens: expected more than 0, found {}", n_prompt);
  const bool this_machine = options.host_memory == 0;  // else it stands for another one
  model_flags.choose_host_layers(
      config, {.session = options, .n_prompt = n_prompt, .n_new = n_predict, .this_machine = this_machine});

  PlanRequest request{.config = config, .backend = model_flags.backend(), .options = options};
  request.weight_bytes = weight_bytes(config) - host_weight_bytes(config);
  request.weights_resident = false;
  request.this_machine = this_machine;
  request.n_prompt = n_prompt;
  request.n_new = n_predict;
  request.n_threads = model_flags.n_threads > 0 ? static_cast<int>(model_flags.n_threads)
                                                : cpu::topology().n_cores;
  const SessionPlan plan = make_plan(request);
  const Console console(false);
  print_plan(plan, n_prompt, console);
  const Most most = most_that_fits(request, n_behind);
  print(most, n_prompt, n_behind, console);
  check_limits(request, plan);
  const std::vector<Floor> floors = floor_flags.all(request, plan, n_behind, most);
  for (const Floor& floor : floors) print(floor, console);
  if (!json) return 0;

  Json result = {{"version", version()},
                 {"commit", source_commit()},
                 {"model", model_flags.name()},
                 {"prompt_tokens", n_prompt},
                 {"behind_tokens", n_behind},
                 {"attention", attention_json(plan)},
                 {"memory", planned_memory_json(plan.memory)},
                 {"most",
                  {{"context_tokens", most.context},
                   {"sequences", most.sequences},
                   {"sequences_behind", n_behind > 0 ? Json(most.sequences_behind) : Json(nullptr)}}},
                 {"floors", Json::array()},
                 {"notes", plan.notes}};
  result["attention"]["threads"] = request.n_threads;
  for (const Floor& floor : floors) result["floors"].push_back(floor_json(floor, floor_flags.hit_rate));
  print_result(result.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  return 0;
}

}  // namespace tiercel
