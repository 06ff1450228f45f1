// Completion as a shell does it: the script is sourced and its function is called.
#include <gtest/gtest.h>

#include "tests/command/process.h"
#include "tests/shell.h"

namespace tiercel::test {
namespace {

// What bash would offer for these words, the last of them unfinished.
std::string offered(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += " \"" + word + "\"";
  const std::string folder = fs::path(binary()).parent_path();
  return shell("PATH=" + folder + ":$PATH bash -c 'source <(tiercel completion bash); COMP_WORDS=(" +
               list + "); COMP_CWORD=" + std::to_string(words.size() - 1) +
               "; _tiercel; echo ${COMPREPLY[@]}'")
      .output;
}

TEST(Completion, CommandsFlagsAndValues) {
  EXPECT_EQ(offered({"tiercel", "e"}), "estimate eval\n");
  EXPECT_EQ(offered({"tiercel", "run", "--value-"}), "--value-codec --value-home\n");
  EXPECT_EQ(offered({"tiercel", "run", "--attention", "d"}), "dense delta\n");
  EXPECT_EQ(offered({"tiercel", "bench", "--prefill", ""}), "auto dense select\n");
  EXPECT_TRUE(contains(offered({"tiercel", "eval", "--l"}), "--lengths"));
  EXPECT_EQ(offered({"tiercel", "nonsense", "--"}), "\n");
}

TEST(Completion, ScriptsForThreeShells) {
  for (const char* name : {"bash", "zsh", "fish"}) {
    const Result result = run({.arguments = {"completion", name}});
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(contains(result.out, "tiercel")) << result.out;
  }
  const Result wrong = run({.arguments = {"completion", "csh"}});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_TRUE(contains(wrong.err, "bash, zsh or fish")) << wrong.err;
  for (const char* command : {"run", "bench", "eval", "estimate", "perplexity", "tokenize",
                              "haystack", "completion", "version"}) {
    EXPECT_EQ(run({.arguments = {command, "--list-flags"}}).code, 0) << command;
  }
}

}  // namespace
}  // namespace tiercel::test
