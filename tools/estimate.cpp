// tiercel estimate: the memory that a run would take, without running it.
#include "engine/base/check.h"
#include "engine/session.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/report.h"
#include "tools/session_flags.h"

namespace tiercel {

int command_estimate(int argc, char** argv) {
  ModelFlags model_flags;
  SessionOptions options;
  int64_t n_prompt = 0, n_predict = 128;
  Flags flags("estimate", "The memory that a run would take. Maps the weights, allocates nothing.",
              "The table goes to stderr, as with run. Exit code 3: it does not fit.\n");
  model_flags.add_to(flags);
  flags.section("Prompt");
  flags.integer("--tokens", n_prompt, 0, int64_t{1} << 40,
                "Tokens of the prompt; 0: all of the model's positions");
  flags.integer("-n,--n-predict,--max-tokens,--max-new-tokens", n_predict, 0, INT32_MAX,
                "Tokens to generate");
  add_session_flags(flags, options);
  if (!flags.parse(argc, argv)) return 0;
  model_flags.check();
  options.n_threads = static_cast<int>(model_flags.n_threads);
  const auto model = Model::open(model_flags.directory, options.n_threads);
  if (n_prompt == 0) {
    n_prompt = options.context > 0 ? options.context : model->config().max_position_embeddings;
    n_prompt -= n_predict;
  }
  if (n_prompt <= 0) fail(ErrorKind::kUsage, "--tokens: expected more than 0, found {}", n_prompt);
  print_plan(Session::plan(*model, options, n_prompt, n_predict), n_prompt, Console(false));
  return 0;
}

}  // namespace tiercel
