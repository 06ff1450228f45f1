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
  EXPECT_EQ(offered({"tiercel", "help", "e"}), "estimate eval\n");
  EXPECT_EQ(offered({"tiercel", "completion", ""}), "bash zsh fish\n");
}

// What fish would offer at the end of this line, without the descriptions.
std::string offered_by_fish(const std::string& line, const std::string& cut = " | cut -f1") {
  const std::string folder = fs::path(binary()).parent_path();
  return shell("cd " + demo_model() + " && PATH=" + folder +
               ":$PATH fish --no-config -c 'source (tiercel completion fish | psub); complete -C \"" +
               line + "\"' 2>&1" + cut)
      .output;
}

TEST(Completion, ByFish) {
  if (shell("command -v fish").code != 0) GTEST_SKIP() << "fish is not installed";
  EXPECT_EQ(offered_by_fish("tiercel e"), "estimate\neval\n");
  EXPECT_EQ(offered_by_fish("tiercel run --value-"), "--value-codec\n--value-home\n");
  EXPECT_EQ(offered_by_fish("tiercel run --strict --attention d"), "delta\ndense\n");
  EXPECT_EQ(offered_by_fish("tiercel bench --prefill "), "auto\ndense\nselect\n");
  EXPECT_EQ(offered_by_fish("tiercel run --budget "), "");
  EXPECT_EQ(offered_by_fish("tiercel run -f conf"), "config.json\n");
  EXPECT_EQ(offered_by_fish("tiercel run -f config.json zzz"), "");
  EXPECT_EQ(offered_by_fish("tiercel nonsense --"), "");
  EXPECT_EQ(offered_by_fish("tiercel run --key", ""),
            "--key-codec\tKeys: exact beside the values, or coded on the device\n");
  for (const char* flag : {"--model", "-m", "--log-file", "--help", "--strict"}) {
    EXPECT_TRUE(contains("\n" + offered_by_fish("tiercel run -"), "\n" + std::string(flag) + "\n"))
        << flag;
  }
}

// What an interactive zsh writes when tab was pressed twice behind this line, up to `last` or for
// five seconds.
std::string offered_by_zsh(const std::string& line, const std::string& last) {
  const Scratch scratch;
  write_file(scratch / "drive", R"zsh(
zmodload zsh/zpty
zpty -b shell zsh -f -i
zpty -w shell "PATH=$1:\$PATH; cd $2; PS1=; source <(tiercel completion zsh); echo loaded\$((1))"
show_until() {
  local out= piece=
  for i in {1..100}; do
    while zpty -rt shell piece 2>/dev/null; do out+=$piece; done
    [[ $out == *"$1"* ]] && break
    sleep 0.05
  done
  print -r -- $out
}
show_until loaded1
zpty -n -w shell "$3"$'\t\t'
show_until "$4"
zpty -d shell
)zsh");
  return shell("HOME=" + (scratch / "") + " zsh -f " + (scratch / "drive") + " " +
               std::string(fs::path(binary()).parent_path()) + " " + demo_model() + " '" + line +
               "' '" + last + "'")
      .output;
}

TEST(Completion, ByZsh) {
  if (shell("command -v zsh").code != 0) GTEST_SKIP() << "zsh is not installed";
  for (const auto& [line, offered] : std::vector<std::pair<std::string, std::vector<std::string>>>{
           {"tiercel e", {"estimate", "eval"}},
           {"tiercel run --value-", {"--value-codec", "--value-home"}},
           {"tiercel run --strict --attention d", {"delta", "dense"}},
           {"tiercel bench --prefill ", {"auto", "dense", "select"}},
           {"tiercel run -f conf", {"config.json"}}}) {
    const std::string shown = offered_by_zsh(line, offered.back());
    for (const std::string& word : offered) EXPECT_TRUE(contains(shown, word)) << shown;
    EXPECT_FALSE(contains(shown, "not found")) << shown;
  }
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
  for (const char* command : {"run", "batch", "serve", "bench", "eval", "estimate", "perplexity", "tokenize",
                              "haystack", "completion", "version"}) {
    EXPECT_EQ(run({.arguments = {command, "--list-flags"}}).code, 0) << command;
  }
}

}  // namespace
}  // namespace tiercel::test
