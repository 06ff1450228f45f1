#include "tools/commands.h"

namespace tiercel {
namespace {

constexpr Command kCommands[] = {
    {"run", "Continue a prompt, however long", command_run},
    {"batch", "Answer many prompts of a file together", command_batch},
    {"serve", "Answer HTTP requests, as OpenAI's endpoints do", command_serve},
    {"bench", "Time of prefill and decode at given lengths", command_bench},
    {"tokenize", "Text to token ids and back", command_tokenize},
    {"perplexity", "How well the model predicts a text", command_perplexity},
    {"estimate", "The memory that a run would take", command_estimate},
    {"eval", "What a composition loses, by tasks and against dense attention", command_eval},
    {"haystack", "Write a long prompt with planted facts, and its questions", command_haystack},
    {"completion", "Completion for bash, zsh or fish", command_completion},
    {"version", "Version, compiler, libraries, instruction set", command_version},
};

}  // namespace

std::span<const Command> commands() { return kCommands; }

}  // namespace tiercel
