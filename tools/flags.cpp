#include "tools/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "engine/base/check.h"
#include "engine/json.h"
#include "tools/console.h"

namespace tiercel {
namespace {

// "--ctx-size" -> "TIERCEL_ARG_CTX_SIZE"
std::string environment_twin(const std::string& long_name) {
  std::string name = "TIERCEL_ARG_";
  for (const char c : long_name) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

// "-m,--model,--weights" -> "--model"
std::string first_long_name(const std::string& names) {
  const size_t begin = names.find("--");
  return names.substr(begin, names.find(',', begin) - begin);
}

// CLI11's help without the "(Env:...)" behind every flag: one sentence below says it for all.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_group(std::string group, bool is_positional,
                         std::vector<const CLI::Option*> options) const override {
    return CLI::Formatter::make_group(group, is_positional, options).substr(1);  // one empty line
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_name().empty()) return {};
    std::string text = " " + option->get_type_name();
    if (!option->get_default_str().empty()) text += " [" + option->get_default_str() + "]";
    return text;
  }
};

// A forgotten variable is a puzzling cause of a complaint: show the ones that took part.
void explain_environment(const CLI::App& app, std::string& message) {
  for (const CLI::Option* option : app.get_options()) {
    const char* value = std::getenv(option->get_envname().c_str());
    if (option->get_envname().empty() || value == nullptr || *value == '\0') continue;
    message += fmt::format("\nnote: the environment sets {}={}", option->get_envname(),
                           printable(value, 40));
  }
}

}  // namespace

int64_t parse_integer(std::string_view text, int64_t low, int64_t high) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < low || value > high) {
    const std::string range = high == Flags::kNoLimit ? fmt::format("from {} up", low)
                                                      : fmt::format("from {} to {}", low, high);
    fail(ErrorKind::kUsage, "expected an integer {}, found '{}'", range, printable(text, 40));
  }
  return value;
}

double parse_number(std::string_view text, double low, double high) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !(value >= low && value <= high)) {
    const std::string range =
        std::isinf(high) ? fmt::format("from {} up", low) : fmt::format("from {} to {}", low, high);
    fail(ErrorKind::kUsage, "expected a number {}, found '{}'", range, printable(text, 40));
  }
  return value;
}

int64_t parse_size(std::string_view text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  std::string_view unit(stop, static_cast<size_t>(end - stop));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1},
                                                            {"B", 1},
                                                            {"KiB", 1024},
                                                            {"MiB", 1048576},
                                                            {"GiB", 1073741824},
                                                            {"TiB", 1099511627776}};
  const auto found = std::find_if(std::begin(kUnits), std::end(kUnits),
                                  [&](const auto& entry) { return entry.first == unit; });
  const double bytes = found == std::end(kUnits) ? -1 : value * found->second;
  if (error != std::errc() || !(bytes >= 0 && bytes < 9e18)) {
    fail(ErrorKind::kUsage,
         "expected a size such as 4096, 64MiB or 1.5GiB (KiB, MiB, GiB, TiB or plain bytes), "
         "found '{}'",
         printable(text, 40));
  }
  return static_cast<int64_t>(bytes);
}

int64_t parse_tokens(std::string_view text) {
  int64_t unit = 1;
  if (text.ends_with('K')) unit = 1024;
  if (text.ends_with('M')) unit = 1024 * 1024;
  try {
    const std::string_view digits = unit > 1 ? text.substr(0, text.size() - 1) : text;
    return unit * parse_integer(digits, 1, (int64_t{1} << 40) / unit);
  } catch (const Error&) {
    fail(ErrorKind::kUsage, "expected a number of tokens such as 4096, 16K or 1M, found '{}'",
         printable(text, 40));
  }
}

void refuse_choice(std::string_view text, const std::vector<std::string_view>& legal) {
  std::string list;
  for (size_t i = 0; i < legal.size(); ++i) {
    list += (i == 0 ? "" : i + 1 == legal.size() ? " or " : ", ") + std::string(legal[i]);
  }
  fail(ErrorKind::kUsage, "expected {}, found '{}'", list, printable(text, 40));
}

Flags::Flags(const char* command, const char* summary, std::string details)
    : app_(summary, std::string("tiercel ") + command), command_(command) {
  auto formatter = std::make_shared<HelpFormatter>();
  formatter->column_width(36);
  app_.formatter(formatter);
  app_.footer((details.empty() ? "" : "\n" + details) +
              "\nEvery flag --some-name can be given as TIERCEL_ARG_SOME_NAME in the environment; "
              "the flag wins.\n");
  app_.set_help_flag("-h,--help", "Print this and exit")->group("Help");
}

CLI::Option* Flags::finish(CLI::Option* option, const char* help) {
  option->description(help)->group(section_);
  if (twins_) option->envname(environment_twin(option->get_lnames().at(0)));
  return option;
}

void Flags::value(const char* names, const char* type, const std::string& default_text,
                  const char* help, std::function<void(const std::string&)> set) {
  const std::string name = first_long_name(names);
  const auto callback = [name, set = std::move(set)](const std::string& text) {
    try {
      set(text);
    } catch (const Error& error) {
      fail(error.kind(), "{}: {}", name, error.what());
    }
  };
  finish(app_.add_option_function<std::string>(names, callback), help)
      ->type_name(type)
      ->default_str(default_text);
}

void Flags::text(const char* names, std::string& target, const char* help) {
  value(names, "TEXT", target, help, [&target](const std::string& text) { target = text; });
}

void Flags::text(const char* names, std::optional<std::string>& target, const char* help) {
  value(names, "TEXT", "", help, [&target](const std::string& text) { target = text; });
}

void Flags::integer(const char* names, int64_t& target, int64_t low, int64_t high,
                    const char* help) {
  value(names, "N", std::to_string(target), help,
        [&target, low, high](const std::string& text) { target = parse_integer(text, low, high); });
}

void Flags::integer(const char* names, std::optional<int64_t>& target, int64_t low, int64_t high,
                    const char* help) {
  value(names, "N", "", help,
        [&target, low, high](const std::string& text) { target = parse_integer(text, low, high); });
}

void Flags::number(const char* names, double& target, double low, double high, const char* help) {
  value(names, "X", fmt::format("{}", target), help,
        [&target, low, high](const std::string& text) { target = parse_number(text, low, high); });
}

void Flags::number(const char* names, std::optional<double>& target, double low, double high,
                   const char* help) {
  value(names, "X", "", help,
        [&target, low, high](const std::string& text) { target = parse_number(text, low, high); });
}

void Flags::size(const char* names, int64_t& target, const char* help) {
  value(names, "SIZE", "", help, [&target](const std::string& text) { target = parse_size(text); });
}

void Flags::flag(const char* names, bool& target, const char* help) {
  finish(app_.add_flag_callback(names, [&target] { target = true; }), help);
}

bool Flags::parse(int argc, char** argv) {
  try {
    app_.parse(argc, argv);
    return true;
  } catch (const CLI::CallForHelp&) {
    print_result(app_.help());
    return false;
  } catch (const CLI::ParseError& error) {
    std::string message = fmt::format("{}; see tiercel {} --help", error.what(), command_);
    explain_environment(app_, message);
    fail(ErrorKind::kUsage, "{}", message);
  } catch (const Error& error) {
    std::string message = error.what();
    explain_environment(app_, message);
    fail(error.kind(), "{}", message);
  }
}

}  // namespace tiercel
