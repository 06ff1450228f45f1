// Every flag of every command has a variable of the environment, and what is wrong with that is said.
#include "tools/commands.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/check.h"

namespace tiercel {
namespace {

int run(const Command& command, std::vector<std::string> words) {
  words.insert(words.begin(), command.name);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return command.run(static_cast<int>(argv.size()), argv.data());
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// {"--ctx-size", "TIERCEL_ARG_CTX_SIZE"} and so on: the flags of a command whose value is not just
// any text. Each of an option's long names, which follow each other, has a variable; messages use the
// first.
std::vector<std::pair<std::string, std::string>> twins_of(const Command& command) {
  testing::internal::CaptureStdout();
  run(command, {"--list-flags"});
  const std::string list = testing::internal::GetCapturedStdout();
  std::vector<std::pair<std::string, std::string>> twins;
  std::string previous, first_name;
  for (const std::string& line : split(list, '\n')) {
    const std::vector<std::string> cells = split(line, '\t');
    if (cells.size() != 3 || !cells[0].starts_with("--")) continue;
    const std::string &name = cells[0], &type = cells[1];
    const std::string option = type + cells[2];
    if (option != std::exchange(previous, option)) first_name = name;
    if (type.empty() || type == "TEXT" || type == "FILE" || type == "DIR" || type == "DIR|FILE") continue;
    std::string variable = "TIERCEL_ARG_";
    for (const char c : name.substr(2)) {
      variable += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    twins.emplace_back(first_name, variable);
  }
  return twins;
}

TEST(Commands, EveryFlagHasAVariableThatIsChecked) {
  size_t n_flags = 0;
  EXPECT_GE(commands().size(), 11u);
  for (const Command& command : commands()) {
    for (const auto& [name, variable] : twins_of(command)) {
      SCOPED_TRACE(std::string(command.name) + " " + name);
      ::setenv(variable.c_str(), "x?", 1);
      try {
        // With a flag: without any, version says what it is whatever the environment says.
        run(command, {"--log-file", "/dev/null"});
        ADD_FAILURE() << "it was taken";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kUsage);
        for (const std::string& word : {name, variable + "=x?"}) {
          EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
        }
      }
      ::unsetenv(variable.c_str());
      ++n_flags;
    }
  }
  EXPECT_GT(n_flags, 150u);
}

}  // namespace
}  // namespace tiercel
