// tiercel haystack: writes a prompt with planted facts, and a JSON file with its questions.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/text/tokenizer.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/haystack.h"
#include "tools/output_file.h"
#include "tools/prompt.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr const char* kHaystackDetails =
    "forms, by what is planted and asked:\n"
    "  magic    The magic number for K is V.\n"
    "           What is the magic number for K? The magic number for K is\n"
    "  special  One of the special magic numbers for K is: V.\n"
    "           What is the special magic number for K? The special magic number for K is\n"
    "  passkey  The pass key of K is V. Remember it.\n"
    "           Question: What is the pass key of K? / Answer:   (two lines)\n"
    "  line     K: V\n"
    "           K:\n"
    "  mixed    all of them in turn\n"
    "\n"
    "The answers file is one JSON object: seed, tokens (of the prompt), form, and facts, by depth, "
    "each "
    "with depth (0 to 1), tokens_before, form, key, value, sentence, question (put it on a new "
    "line "
    "behind the prompt) and answer (what the continuation should begin with).\n";

// The model that comes with the source: looked for above the working directory and above the
// program, which a build leaves somewhere inside the source tree.
std::string find_demo_model() {
  namespace fs = std::filesystem;
  std::error_code ignored;
  for (fs::path start : {fs::current_path(ignored), fs::read_symlink("/proc/self/exe", ignored)}) {
    for (; start.has_relative_path(); start = start.parent_path()) {
      const fs::path candidate = start / "tools" / "demo" / "recall-4m";
      if (fs::exists(candidate / "tokenizer.json", ignored)) return candidate.string();
    }
  }
  fail(ErrorKind::kUsage,
       "--model: expected the model whose tokenizer counts the tokens, found none (nor the demo "
       "model "
       "nearby); add -m DIR");
}

std::string answers_json(const Haystack& haystack, const HaystackRequest& request) {
  nlohmann::ordered_json facts = nlohmann::ordered_json::array();
  for (const Fact& fact : haystack.facts) {
    facts.push_back({{"depth", fact.depth},
                     {"tokens_before", fact.tokens_before},
                     {"form", name_of(fact.form)},
                     {"key", fact.key},
                     {"value", fact.value},
                     {"sentence", fact.sentence()},
                     {"question", fact.question()},
                     {"answer", fact.answer()}});
  }
  const nlohmann::ordered_json json = {{"seed", request.seed},
                                       {"tokens", haystack.n_tokens},
                                       {"form", name_of(request.form)},
                                       {"facts", facts}};
  return json.dump(2) + "\n";
}

}  // namespace

int command_haystack(int argc, char** argv) {
  std::string model, prompt_path, answers_path;
  std::optional<std::string> text_path;
  std::optional<int64_t> ask;
  HaystackRequest request;
  int64_t seed = 0;
  Flags flags("haystack", "Write a long prompt with planted facts, and its questions.", kHaystackDetails);
  flags.section("Haystack");
  flags.tokens("--tokens", request.n_tokens, 1, int64_t{1} << 32,
               "Tokens of the prompt, to 0.5 %");
  flags.integer("--facts", request.n_facts, 1, 2000,
                "Facts, at even depths from first to last line; up to 40 of them share no word in their keys");
  flags.integer("-s,--seed", seed, 0, Flags::kNoLimit, "The same seed gives the same files");
  flags.choice("--form", request.form,
               {{"magic", FactForm::kMagic},
                {"special", FactForm::kSpecial},
                {"passkey", FactForm::kPassKey},
                {"line", FactForm::kLine},
                {"mixed", FactForm::kMixed}},
               "Form of the facts");
  flags.file("--text", text_path, Flags::FileUse::kRead,
             "Filler: this file (-: stdin) instead of our own prose");
  flags.text("-m,--model", model, "Whose tokenizer counts the tokens; default: the demo model",
             "DIR|FILE");
  flags.uses("--model", Flags::FileUse::kReadModel, [&model] { return model; });
  flags.section("Output");
  flags.file("-o,--output", prompt_path, Flags::FileUse::kWritten, "File for the prompt");
  flags.file("--answers", answers_path, Flags::FileUse::kWritten,
             "File for questions and answers (JSON)");
  flags.integer("--ask", ask, 0, 1999, "Append the question of this fact to the prompt");
  if (!flags.parse(argc, argv)) return 0;
  const StopsAtOnce at_once;
  const Console console(false);
  if (request.n_tokens == 0) fail(ErrorKind::kUsage, "--tokens: expected a length, found none");
  if (ask && *ask >= request.n_facts) {
    fail(ErrorKind::kUsage, "--ask: expected an index from 0 to {}, found {}", request.n_facts - 1,
         *ask);
  }
  if (prompt_path.empty())
    fail(ErrorKind::kUsage, "--output: expected a file, found none; add -o FILE");
  const OutputFile prompt_file(prompt_path, "--output");
  const OutputFile answers_file =
      answers_path.empty() ? OutputFile() : OutputFile(answers_path, "--answers");
  request.seed = static_cast<uint64_t>(seed);
  if (text_path) {
    request.text = read_input(*text_path, "--text");
    check_utf8(*request.text, *text_path, console, false);
  }
  const Tokenizer tokenizer = Tokenizer::load(model.empty() ? find_demo_model() : model);
  request.n_lead = static_cast<int64_t>(tokenizer.encode("").size());
  request.count = [&](std::string_view text) {
    const auto ids = tokenizer.encode(
        text, {.add_special = false, .parse_special = false, .follows = Follows::kText});
    return static_cast<int64_t>(ids.size());
  };
  Haystack haystack = make_haystack(request);
  for (const std::string& note : haystack.notes) console.warning(note);
  const std::string answers = answers_json(haystack, request);
  if (ask) haystack.prompt += haystack.facts[static_cast<size_t>(*ask)].question();
  prompt_file.write(haystack.prompt);
  if (answers_file.wanted()) answers_file.write(answers);
  console.info("{}: {} tokens, {} fact{}, {}", prompt_path, format_count(haystack.n_tokens),
               request.n_facts, request.n_facts == 1 ? "" : "s",
               format_bytes(static_cast<int64_t>(haystack.prompt.size())));
  return 0;
}

}  // namespace tiercel
