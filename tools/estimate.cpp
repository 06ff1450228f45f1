// tiercel estimate: the memory that a run would take, from config.json alone.
#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/session_plan.h"
#include "engine/weights.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/report.h"
#include "tools/session_flags.h"

namespace tiercel {

int command_estimate(int argc, char** argv) {
  ModelFlags model_flags;
  SessionOptions options;
  int64_t n_prompt = 0, n_predict = 128;
  Flags flags("estimate", "The memory that a run would take. Reads config.json only.",
              "The table goes to stderr, as with run. Exit code 3: it does not fit.\n");
  model_flags.add_to(flags, /*with_synthetic=*/true);
  flags.section("Prompt");
  flags.integer("--tokens", n_prompt, 0, int64_t{1} << 40,
                "Tokens of the prompt; 0: all of the model's positions");
  flags.integer("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, 0, INT32_MAX,
                "Tokens to generate");
  add_session_flags(flags, options);
  if (!flags.parse(argc, argv)) return 0;
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
  request.n_prompt = n_prompt;
  request.n_new = n_predict;
  request.n_threads = model_flags.n_threads > 0 ? static_cast<int>(model_flags.n_threads)
                                                : cpu::topology().n_cores;
  const SessionPlan plan = make_plan(request);
  print_plan(plan, n_prompt, Console(false));
  check_limits(request, plan);
  return 0;
}

}  // namespace tiercel
