#include "tools/flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

#include "engine/base/check.h"
#include "engine/json.h"
#include "tools/console.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

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

constexpr size_t kNamesWidth = 36, kHelpWidth = 100;  // columns

// Lines of at most `width` characters, but for longer words.
std::string wrapped(const std::string& text, size_t width) {
  std::string out;
  size_t column = 0, at = 0;
  while (at < text.size()) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (column > 0) {
      const bool fits = column + 1 + (end - at) <= width;
      out += fits ? ' ' : '\n';
      column = fits ? column + 1 : 0;
    }
    out.append(text, at, end - at);
    column += end - at;
    at = end + 1;
  }
  return out;
}

// Steps of adding, dropping, changing or swapping characters.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] =
          std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// CLI11's help, wrapped, without the "(Env:...)" behind every flag: one sentence below says it for
// all.
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
  std::string make_option_desc(const CLI::Option* option) const override {
    return wrapped(CLI::Formatter::make_option_desc(option), kHelpWidth - get_column_width());
  }
};

// A forgotten variable is a puzzling cause of a complaint: show the ones that took part.
void explain_environment(const CLI::App& app, std::string& message) {
  for (const CLI::Option* option : app.get_options()) {
    const char* value = std::getenv(option->get_envname().c_str());
    if (option->get_envname().empty() || value == nullptr || *value == '\0') continue;
    const bool is_secret = option->get_envname().ends_with("_KEY");
    message += fmt::format("\nnote: the environment sets {}={}", option->get_envname(),
                           is_secret ? "..." : printable(value, 40));
  }
}

// Names that a model's folder gives to its own files. What else lies there, a session say, is the user's.
bool is_of_a_model(std::string_view name) {
  constexpr std::string_view kNames[] = {"config.json",     "generation_config.json",  "tokenizer.json",
                                         "tokenizer.model", "tokenizer_config.json",   "chat_template.json",
                                         "chat_template.jinja", "special_tokens_map.json"};
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") || name.ends_with(".gguf") ||
         std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace

std::string did_you_mean(std::string_view found, const std::vector<std::string>& known) {
  if (found.size() > 40) return "";
  const auto nearest = std::min_element(
      known.begin(), known.end(), [&](const std::string& a, const std::string& b) {
        return edit_distance(found, a) < edit_distance(found, b);
      });
  const size_t close = std::max<size_t>(found.size() / 4, 1) + 1;
  if (nearest == known.end() || edit_distance(found, *nearest) > close) return "";
  return "; did you mean " + *nearest + "?";
}

Flags::Flags(const char* command, const char* summary, std::string details)
    : app_(std::make_unique<CLI::App>(summary, std::string("tiercel ") + command)),
      command_(command),
      details_(std::move(details)) {
  auto formatter = std::make_shared<HelpFormatter>();
  formatter->column_width(kNamesWidth);
  app_->formatter(formatter);
  app_->set_help_flag("-h,--help", "Print this and exit")->group("Help");
}

Flags::~Flags() = default;

std::string Flags::footer() const {
  std::string text = details_.empty() ? "" : "\n" + details_;
  text += "\n";
  if (counts_tokens_) text += "TOKENS are 4096, or 16K (16,384), or 1M (1,048,576).\n";
  return text +
         "Every flag --some-name can be given as TIERCEL_ARG_SOME_NAME in the environment; the flag "
         "wins.\n";
}

CLI::Option* Flags::finish(CLI::Option* option, const char* help) {
  option->description(help)->group(section_);
  if (!twins_) return option;
  // Every long name has a twin; the first that is set counts.
  const std::vector<std::string>& names = option->get_lnames();
  const auto set = std::find_if(names.begin(), names.end(), [](const std::string& name) {
    return std::getenv(environment_twin(name).c_str()) != nullptr;
  });
  option->envname(environment_twin(set == names.end() ? names.at(0) : *set));
  return option;
}

void Flags::value(const char* names, const char* type, const std::string& default_text,
                  const char* help, std::function<void(const std::string&)> set) {
  counts_tokens_ |= std::string_view(type) == kTokens;
  const std::string name = first_long_name(names);
  const auto callback = [name, set = std::move(set)](const std::string& text) {
    at_place(name, [&] { set(text); });
  };
  finish(app_->add_option_function<std::string>(names, callback), help)
      ->take_last()  // of a flag that is given twice
      ->type_name(type)
      ->default_str(default_text);
}

void Flags::values(const char* names, const char* type, const char* help,
                   std::function<void(const std::vector<std::string>&)> set) {
  const auto callback = [name = first_long_name(names),
                         set = std::move(set)](const std::vector<std::string>& all) {
    at_place(name, [&] { set(all); });
  };
  finish(app_->add_option_function<std::vector<std::string>>(names, callback), help)
      ->expected(1)
      ->allow_extra_args(false)  // CLI11 would take "[a,b]" for a list
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name(type);
}

void Flags::texts(const char* names, std::vector<std::string>& target, const char* help) {
  values(names, "TEXT", help, [&target](const std::vector<std::string>& all) {
    target = all;
    if (std::find(all.begin(), all.end(), "") == all.end()) return;
    fail(ErrorKind::kUsage, "expected a text, found an empty one");
  });
}

void Flags::biases(const char* names, std::vector<LogitBias>& target, const char* help) {
  values(names, "ID+X,..", help, [&target](const std::vector<std::string>& all) {
    target = parse_biases(fmt::format("{}", fmt::join(all, ",")));
  });
}

void Flags::text(const char* names, std::string& target, const char* help, const char* type) {
  value(names, type, target, help, [&target](const std::string& text) { target = text; });
}

void Flags::text(const char* names, std::optional<std::string>& target, const char* help) {
  value(names, "TEXT", "", help, [&target](const std::string& text) { target = text; });
}

void Flags::file(const char* names, std::string& target, FileUse use, const char* help) {
  value(names, "FILE", target, help, [&target](const std::string& text) { target = text; });
  uses(first_long_name(names).c_str(), use, [&target] { return target; });
}

void Flags::file(const char* names, std::optional<std::string>& target, FileUse use,
                 const char* help) {
  value(names, "FILE", "", help, [&target](const std::string& text) { target = text; });
  uses(first_long_name(names).c_str(), use, [&target] { return target.value_or(""); });
}

void Flags::uses(const char* name, FileUse use, std::function<std::string()> path) {
  files_.push_back({name, use, std::move(path)});
}

void Flags::flag(const char* names, bool& target, const char* help) {
  finish(app_->add_flag_callback(names, [&target] { target = true; }), help);
}

// Every command has them, behind its own.
void Flags::add_log_flags() {
  section("Log");
  file("--log-file", log_file_, FileUse::kWritten,
       "Append what is said on stderr to this file, with time and level");
  choice("--log-level", log_level_,
         {{"info", LogLevel::kInfo}, {"warning", LogLevel::kWarning}, {"error", LogLevel::kError}},
         "Say nothing below this level");
}

std::string Flags::list() const {
  std::string text;
  for (const CLI::Option* option : app_->get_options()) {
    const auto add = [&](const std::string& name) {
      text += name + "\t" + option->get_type_name() + "\t" + option->get_description() + "\n";
    };
    for (const std::string& name : option->get_snames()) add("-" + name);
    for (const std::string& name : option->get_lnames()) add("--" + name);
  }
  return text;
}

std::vector<std::vector<std::string>> Flags::given_of(const Flags& others) const {
  std::vector<std::vector<std::string>> given;
  for (const CLI::Option* option : app_->get_options()) {
    if (option->count() == 0 || option->get_lnames().empty()) continue;
    const std::string name = "--" + option->get_lnames().at(0);
    if (others.app_->get_option_no_throw(name) == nullptr) continue;
    given.push_back({name});
    if (option->get_items_expected_max() > 0) given.back().push_back(option->results().back());
  }
  return given;
}

// The first argument that is no flag's, and what may have been meant.
std::string Flags::unexpected() const {
  const std::vector<std::string> extras = app_->remaining();
  const auto flag = std::find_if(extras.begin(), extras.end(), [](const std::string& word) {
    return word.starts_with('-');
  });
  if (flag == extras.end()) {
    return fmt::format("expected flags, found '{}'", printable(extras.at(0), 40));
  }
  const std::string name = flag->substr(0, flag->find('='));
  std::vector<std::string> known;
  for (const CLI::Option* option : app_->get_options()) {
    for (const std::string& one : option->get_lnames()) known.push_back("--" + one);
  }
  return fmt::format("{}: no such flag{}", printable(name, 40), did_you_mean(name, known));
}

void Flags::check_models(const File& file, const std::string& path) const {
  if (file.use == FileUse::kRead) return;
  std::error_code error;
  const fs::path place = fs::canonical(path, error);
  if (error) return;
  for (const File& model : files_) {
    if (model.use != FileUse::kReadModel || model.path().empty()) continue;
    const fs::path given = fs::canonical(model.path(), error);
    const fs::path folder = fs::is_directory(given, error) ? given : given.parent_path();
    const bool is_part = place == given || (folder == place.parent_path() && is_of_a_model(place.filename().string()));
    if (!is_part) continue;
    fail(ErrorKind::kUsage, "{}: expected a file that is no part of the model, found {}, which is one of {}",
         file.name, path, model.path());
  }
}

// Checked before anything is computed, and long before anything is written.
void Flags::check_files() const {
  std::multimap<std::string, const File*> known;
  for (const bool only_read : {false, true}) {
    for (const File& file : files_) {
      const std::string path = file.path();
      if ((file.use == FileUse::kRead) != only_read || path.empty() || path == "-") continue;
      if (file.use == FileUse::kReadModel) continue;
      std::error_code ignored;
      check_models(file, path);
      if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) continue;
      const std::string place = fs::weakly_canonical(fs::absolute(path, ignored), ignored).string();
      const auto [begin, end] = known.equal_range(place);
      for (auto other = begin; other != end; ++other) {
        const File& its = *other->second;
        if (its.use == file.use && file.use != FileUse::kWritten) continue;
        fail(ErrorKind::kUsage, "{} and {}: expected two files, found {} twice", its.name,
             file.name, path);
      }
      known.emplace(place, &file);
    }
  }
}

bool Flags::parse(int argc, char** argv) {
  if (with_log_) add_log_flags();
  app_->footer(footer());
  if (argc == 2 && std::string_view(argv[1]) == "--list-flags") {
    print_result(list());
    return false;
  }
  try {
    app_->parse(argc, argv);
    check_files();
    if (with_log_) set_log(log_file_, log_level_);
    return true;
  } catch (const CLI::CallForHelp&) {
    print_result(app_->help());
    return false;
  } catch (const CLI::ExtrasError&) {
    std::string message = unexpected();
    explain_environment(*app_, message);
    fail(ErrorKind::kUsage, "{}; see tiercel {} --help", message, command_);
  } catch (const CLI::ParseError& error) {
    std::string message = fmt::format("{}; see tiercel {} --help", error.what(), command_);
    explain_environment(*app_, message);
    fail(ErrorKind::kUsage, "{}", message);
  } catch (const Error& error) {
    std::string message = error.what();
    explain_environment(*app_, message);
    fail(error.kind(), "{}", message);
  }
}

}  // namespace tiercel
