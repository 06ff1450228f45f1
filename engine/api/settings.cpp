#include "engine/api/settings.h"

#include <algorithm>

#include "engine/api/state.h"
#include "engine/batch_plan.h"
#include "engine/option_rows.h"

namespace tiercel::detail {
namespace {

// "-n,--n-predict,--max-tokens" -> {"n-predict", "max-tokens"}
std::vector<std::string> long_names(std::string_view names) {
  std::vector<std::string> found;
  for (size_t begin = 0; begin < names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    const std::string_view name = names.substr(begin, end - begin);
    if (name.starts_with("--")) found.emplace_back(name.substr(2));
    begin = end + 1;
  }
  return found;
}

}  // namespace

OptionTable::OptionTable(Settings& s) {
  add_model_options(*this, s.backend, s.device, s.n_threads, s.reach, s.host_layers, s.weight_form);
  scope_ = OptionScope::kSession;
  add_session_options(*this, s.session);
  scope_ = OptionScope::kBatch;
  integer("--parallel", s.parallel, 1, kMaxSequences,
          "Batches: sequences that are decoded together, at most");
  tokens("--max-prompt", s.max_prompt, 0, kMaxOptionTokens,
         "Batches: tokens of the longest prompt; 0: one less than ctx-size");
  number("--max-gap", s.max_gap, 0, 1e9,
         "Batches: seconds of prefill between two decode steps; 0: prompts first");
  add_micro_batches_option(*this, s.micro_batches);
  scope_ = OptionScope::kRequest;
  tokens("-n,--n-predict,--max-tokens,--max-new-tokens", s.n_predict, -1, INT32_MAX,
         "Tokens that can follow the prompt; -1: as many as the context, or the model, allows");
  flag("--ignore-eos", s.ignore_eos, "Go on after an end-of-text token");
  flag("--no-bos", s.no_bos, "Do not put the begin-of-text token in front");
  flag("--special", s.special, "Read <|special|> tokens in texts as such");
  add_sampling_options(*this, s.sampling);
  add_form_options(*this, s.sampling.form);
  add_logprobs_option(*this, s.n_logprobs);
}

const OptionTable::Row& OptionTable::find(const std::string& name) const {
  std::string all;
  for (const Row& row : rows_) {
    if (std::find(row.names.begin(), row.names.end(), name) != row.names.end()) return row;
    if (!all.empty()) all += ", ";
    all += row.names[0];
  }
  refuse(v0::ErrorKind::kUsage, "option '{}': there is none of this name; there are: {}", name,
         all);
}

void OptionTable::flag(const char* names, bool& target, const char* help) {
  choice(names, target, {{"false", false}, {"true", true}}, help);
}

void OptionTable::value(const char* names, const char* type, const std::string& initial,
                        const char* help, std::function<void(const std::string&)> set) {
  rows_.push_back({long_names(names), type, initial, help, scope_, std::move(set)});
}

void apply(std::initializer_list<const v0::Options*> first_wins, Settings& settings) {
  const OptionTable table(settings);
  for (const OptionTable::Row& row : table.rows()) {
    for (const v0::Options* options : first_wins) {
      const auto& values = options->values();
      const auto found = std::find_if(values.begin(), values.end(),
                                      [&](const auto& v) { return v.first == row.names[0]; });
      if (found == values.end()) continue;
      row.set(found->second);
      break;
    }
  }
  settings.session.n_threads = static_cast<int>(settings.n_threads);
}

Settings resolve(std::initializer_list<const v0::Options*> first_wins) {
  Settings settings;
  apply(first_wins, settings);
  return settings;
}

namespace {

// Calls f(name, scope) for every option that is set.
template <typename F>
void visit_scopes(const v0::Options& options, F f) {
  Settings settings;
  const OptionTable table(settings);
  for (const auto& [name, value] : options.values()) f(name, table.find(name).scope);
}

[[noreturn]] void refuse_option(const std::string& name, const char* why) {
  refuse(v0::ErrorKind::kUsage, "option '{}': {}", name, why);
}

}  // namespace

void require_session_options(const v0::Options& options) {
  visit_scopes(options, [](const std::string& name, OptionScope scope) {
    if (scope == OptionScope::kEngine) {
      refuse_option(name, "decided when the engine is opened; give it to Engine, not to a session");
    }
    if (scope == OptionScope::kBatch) {
      refuse_option(name, "that of a batch; a session is one sequence");
    }
    if (name == "logprobs") refuse_option(name, "that of a batch's requests; a session has logits()");
  });
}

void require_batch_options(const v0::Options& options) {
  visit_scopes(options, [](const std::string& name, OptionScope scope) {
    if (scope == OptionScope::kEngine) {
      refuse_option(name, "decided when the engine is opened; give it to Engine, not to a batch");
    }
    if (name == "audit") refuse_option(name, "a batch measures no attention mass; a session does");
  });
}

void require_request_options(const v0::Options& options) {
  visit_scopes(options, [](const std::string& name, OptionScope scope) {
    if (scope != OptionScope::kRequest) {
      refuse_option(name,
                    "decided for all requests when the batch is opened; a request takes sampling "
                    "options, n-predict, logprobs, ignore-eos, no-bos and special");
    }
  });
}

}  // namespace tiercel::detail

namespace tiercel::v0 {

using detail::OptionTable;
using detail::Settings;

Options::Options(std::initializer_list<std::pair<std::string, std::string>> values) {
  for (const auto& [name, value] : values) set(name, value);
}

Options& Options::set(const std::string& name, const std::string& value) {
  Settings scratch;
  const OptionTable table(scratch);
  const OptionTable::Row& row = table.find(name);
  try {
    row.set(value);
  } catch (const tiercel::Error& error) {
    detail::refuse(ErrorKind::kUsage, "option '{}': {}", name, error.what());
  }
  const auto found = std::find_if(values_.begin(), values_.end(),
                                  [&](const auto& v) { return v.first == row.names[0]; });
  if (found != values_.end()) {
    found->second = value;
  } else {
    values_.emplace_back(row.names[0], value);
  }
  return *this;
}

std::vector<OptionInfo> Options::list() {
  Settings settings;
  std::vector<OptionInfo> infos;
  const OptionTable table(settings);
  for (const OptionTable::Row& row : table.rows()) {
    infos.push_back({row.names[0], row.type, row.initial, row.help});
  }
  return infos;
}

}  // namespace tiercel::v0
