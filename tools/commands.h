// The subcommands. Each takes argv from its own name on, and returns the exit code or throws Error.
#pragma once

#include <span>

namespace tiercel {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(int argc, char** argv);
};
std::span<const Command> commands();

int command_run(int argc, char** argv);
int command_batch(int argc, char** argv);
int command_serve(int argc, char** argv);
int command_bench(int argc, char** argv);
int command_tokenize(int argc, char** argv);
int command_perplexity(int argc, char** argv);
int command_estimate(int argc, char** argv);
int command_eval(int argc, char** argv);
int command_haystack(int argc, char** argv);
int command_completion(int argc, char** argv);
int command_version(int argc, char** argv);

}  // namespace tiercel
