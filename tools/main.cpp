// The tiercel command: finds the subcommand and turns what it throws into an exit code.
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/unfinished_files.h"
#include "engine/json.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

std::string usage() {
  std::string text =
      "tiercel: runs prompts that are larger than the GPU's memory\n\n"
      "usage: tiercel COMMAND [FLAGS]\n\ncommands:\n";
  for (const Command& command : commands()) {
    text += fmt::format("  {:<12}{}\n", command.name, command.summary);
  }
  return text +
         "\ntiercel COMMAND --help explains its flags.\n"
         "exit codes: 0 done, 1 run-time error, 2 usage, 3 does not fit into memory, "
         "130 interrupted\n";
}

// Null: there is none of that name.
const Command* find_command(std::string_view name) {
  const auto found = std::ranges::find_if(commands(), [&](const Command& command) { return name == command.name; });
  return found != commands().end() ? &*found : nullptr;
}

[[noreturn]] void refuse_command(const std::string& found) {
  std::vector<std::string> known;
  for (const Command& command : commands()) known.emplace_back(command.name);
  fail(ErrorKind::kUsage, "expected a command, found {}{}; there are: {}",
       found.empty() ? "none" : "'" + printable(found, 40) + "'", did_you_mean(found, known),
       fmt::join(known, ", "));
}

void list_commands() {  // for completion
  std::string text;
  for (const Command& command : commands()) text += std::string(command.name) + "\n";
  print_result(text);
}

int help_of(char* name) {
  const Command* command = find_command(name);
  if (command == nullptr) refuse_command(name);
  std::string help = "--help";
  std::array<char*, 2> words = {name, help.data()};
  return command->run(2, words.data());
}

int dispatch(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const bool lists = name == "--list-commands" ||
                     (name == "help" && argc > 2 && argv[2] == std::string_view("--list-flags"));
  if (lists) {
    list_commands();
    return 0;
  }
  if (name == "help" && argc > 2) return help_of(argv[2]);
  if (name == "--help" || name == "-h" || name == "help") {
    print_result(usage());
    return 0;
  }
  if (name == "--version") return command_version(1, argv + 1);
  if (const Command* command = find_command(name)) return command->run(argc - 1, argv + 1);
  refuse_command(name);
}

// An error in a thread that nobody waits for: one of a library's, where the system has no more memory or
// threads for it. What is no error of the world is a bug, and aborts.
[[noreturn]] void end_with_error() {
  try {
    if (const std::exception_ptr error = std::current_exception()) std::rethrow_exception(error);
  } catch (const std::exception& error) {
    Console(false).error(fmt::format("{}; lower --threads (-t), or what else takes memory", error.what()));
    unlink_unfinished_files();
    std::_Exit(static_cast<int>(ErrorKind::kRuntime));
  } catch (...) {
  }
  std::abort();
}

}  // namespace
}  // namespace tiercel

int main(int argc, char** argv) {
  using tiercel::ErrorKind;
  tiercel::secure_standard_streams();
  tiercel::install_signal_handlers();
  std::set_terminate(tiercel::end_with_error);
  const tiercel::Console console(false);
  try {
    return tiercel::dispatch(argc, argv);
  } catch (const tiercel::ReaderGone&) {
    return static_cast<int>(ErrorKind::kRuntime);
  } catch (const tiercel::Error& error) {
    console.error(error.what());
    return static_cast<int>(error.kind());
  } catch (const std::bad_alloc&) {
    console.error("the system has no more memory for this process; shorten the context (-c, -n, the prompt)");
    return static_cast<int>(ErrorKind::kDoesNotFit);
  } catch (const std::exception& error) {
    console.error(error.what());
    return static_cast<int>(ErrorKind::kRuntime);
  }
}
