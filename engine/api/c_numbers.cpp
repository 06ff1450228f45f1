#include "engine/api/c_numbers.h"

#include <algorithm>
#include <iterator>

#include "engine/api/state.h"

namespace tiercel::detail {
namespace {

template <auto field, typename T>
double value_of(const T& object) {
  return static_cast<double>(object.*field);
}

template <typename T>
struct Number {
  const char* name;
  double (*of)(const T&);
};

using v0::BatchStats;
using v0::MemoryPlan;
using v0::ModelInfo;
using v0::RequestStats;
using v0::Stats;

const Number<ModelInfo> kOfModel[] = {
    {"layers", value_of<&ModelInfo::n_layers>},
    {"vocab-size", value_of<&ModelInfo::vocab_size>},
    {"max-positions", value_of<&ModelInfo::max_positions>},
    {"parameters", value_of<&ModelInfo::parameters>},
    {"weight-bytes", value_of<&ModelInfo::weight_bytes>},
    {"bos-token", value_of<&ModelInfo::bos_token>},
};

const Number<MemoryPlan> kOfPlan[] = {
    {"weights", value_of<&MemoryPlan::weights>},
    {"keys", value_of<&MemoryPlan::keys>},
    {"values", value_of<&MemoryPlan::values>},
    {"landmarks", value_of<&MemoryPlan::landmarks>},
    {"slots", value_of<&MemoryPlan::slots>},
    {"exact", value_of<&MemoryPlan::exact>},
    {"activations", value_of<&MemoryPlan::activations>},
    {"device-total", value_of<&MemoryPlan::device_total>},
    {"host-weights", value_of<&MemoryPlan::host_weights>},
    {"host-keys", value_of<&MemoryPlan::host_keys>},
    {"host-values", value_of<&MemoryPlan::host_values>},
    {"host-staging", value_of<&MemoryPlan::host_staging>},
    {"host-total", value_of<&MemoryPlan::host_total>},
    {"process", value_of<&MemoryPlan::process>},
    {"resident", value_of<&MemoryPlan::resident>},
    {"context", value_of<&MemoryPlan::context>},
    {"session-file", value_of<&MemoryPlan::session_file>},
};

const Number<Stats> kOfSession[] = {
    {"prompt-tokens", value_of<&Stats::prompt_tokens>},
    {"generated-tokens", value_of<&Stats::generated_tokens>},
    {"decode-steps", value_of<&Stats::decode_steps>},
    {"open-seconds", value_of<&Stats::open_seconds>},
    {"prefill-seconds", value_of<&Stats::prefill_seconds>},
    {"decode-seconds", value_of<&Stats::decode_seconds>},
    {"seed", value_of<&Stats::seed>},
    {"selections", value_of<&Stats::selections>},
    {"selected-chunks", value_of<&Stats::selected_chunks>},
    {"hit-chunks", value_of<&Stats::hit_chunks>},
    {"fetched-bytes", value_of<&Stats::fetched_bytes>},
    {"decisions", value_of<&Stats::decisions>},
    {"reused", value_of<&Stats::reused>},
    {"audited-steps", value_of<&Stats::audited_steps>},
    {"audit-mass-mean", value_of<&Stats::audit_mass_mean>},
    {"audit-mass-p05", value_of<&Stats::audit_mass_p05>},
    {"guessed-tokens", value_of<&Stats::guessed_tokens>},
    {"right-guesses", value_of<&Stats::right_guesses>},
};

const Number<BatchStats> kOfBatch[] = {
    {"queued", value_of<&BatchStats::queued>},
    {"prefilling", value_of<&BatchStats::prefilling>},
    {"decoding", value_of<&BatchStats::decoding>},
    {"ended", value_of<&BatchStats::ended>},
    {"steps", value_of<&BatchStats::steps>},
    {"step-tokens", value_of<&BatchStats::step_tokens>},
    {"prompt-tokens", value_of<&BatchStats::prompt_tokens>},
    {"most-decoding", value_of<&BatchStats::most_decoding>},
    {"step-seconds", value_of<&BatchStats::step_seconds>},
    {"prefill-seconds", value_of<&BatchStats::prefill_seconds>},
    {"longest-gap-seconds", value_of<&BatchStats::longest_gap>},
    {"guessed-tokens", value_of<&BatchStats::guessed_tokens>},
    {"right-guesses", value_of<&BatchStats::right_guesses>},
};

const Number<RequestStats> kOfRequest[] = {
    {"state", value_of<&RequestStats::state>},
    {"prompt-tokens", value_of<&RequestStats::prompt_tokens>},
    {"generated-tokens", value_of<&RequestStats::generated_tokens>},
    {"queued-seconds", value_of<&RequestStats::queued_seconds>},
    {"first-token-seconds", value_of<&RequestStats::first_token_seconds>},
    {"decode-seconds", value_of<&RequestStats::decode_seconds>},
    {"seed", value_of<&RequestStats::seed>},
    {"selections", value_of<&RequestStats::selections>},
    {"selected-chunks", value_of<&RequestStats::selected_chunks>},
    {"hit-chunks", value_of<&RequestStats::hit_chunks>},
    {"fetched-bytes", value_of<&RequestStats::fetched_bytes>},
    {"decisions", value_of<&RequestStats::decisions>},
    {"reused", value_of<&RequestStats::reused>},
    {"prefix-tokens", value_of<&RequestStats::prefix_tokens>},
};

template <typename T, size_t n>
const Number<T>* find(const Number<T> (&numbers)[n], std::string_view name, std::string& names) {
  for (const Number<T>& one : numbers) {
    if (one.name == name) return &one;
    if (!names.empty()) names += ", ";
    names += one.name;
  }
  return nullptr;
}

[[noreturn]] void refuse_name(std::string_view name, const std::string& names) {
  refuse(v0::ErrorKind::kUsage, "'{}': there is none of this name; there are: {}", name, names);
}

template <typename T, size_t n>
double number_in(const Number<T> (&numbers)[n], const T& object, std::string_view name) {
  std::string names;
  if (const Number<T>* found = find(numbers, name, names)) return found->of(object);
  refuse_name(name, names);
}

// The room that is left.
template <typename T, size_t n>
std::span<double> numbers_in(const Number<T> (&numbers)[n], const T& object,
                             std::span<double> values) {
  const size_t n_written = std::min(n, values.size());
  for (size_t i = 0; i < n_written; ++i) values[i] = numbers[i].of(object);
  return values.subspan(n_written);
}

template <typename T, size_t n>
const char* name_in(const Number<T> (&numbers)[n], size_t index) {
  return index < n ? numbers[index].name : nullptr;
}
// Of two lists, one behind the other.
template <typename T, typename U, size_t n, size_t m>
const char* name_in(const Number<T> (&first)[n], const Number<U> (&second)[m], size_t index) {
  return index < n ? first[index].name : name_in(second, index - n);
}

}  // namespace

double number(const ModelInfo& info, std::string_view name) {
  return number_in(kOfModel, info, name);
}
void numbers(const ModelInfo& info, std::span<double> values) {
  numbers_in(kOfModel, info, values);
}
const char* model_number_name(size_t index) { return name_in(kOfModel, index); }

double number(const MemoryPlan& plan, std::string_view name) {
  return number_in(kOfPlan, plan, name);
}
void numbers(const MemoryPlan& plan, std::span<double> values) {
  numbers_in(kOfPlan, plan, values);
}
const char* plan_number_name(size_t index) { return name_in(kOfPlan, index); }

double number(const v0::Session& session, std::string_view name) {
  std::string names;
  if (const auto* found = find(kOfSession, name, names)) return found->of(session.stats());
  if (const auto* found = find(kOfPlan, name, names)) return found->of(session.memory());
  refuse_name(name, names);
}
void numbers(const v0::Session& session, std::span<double> values) {
  numbers_in(kOfPlan, session.memory(), numbers_in(kOfSession, session.stats(), values));
}

double number(const v0::Batch& batch, std::string_view name) {
  std::string names;
  if (const auto* found = find(kOfBatch, name, names)) return found->of(batch.stats());
  if (const auto* found = find(kOfPlan, name, names)) return found->of(batch.memory());
  refuse_name(name, names);
}
void numbers(const v0::Batch& batch, std::span<double> values) {
  numbers_in(kOfPlan, batch.memory(), numbers_in(kOfBatch, batch.stats(), values));
}
const char* batch_number_name(size_t index) { return name_in(kOfBatch, kOfPlan, index); }

double number(const RequestStats& stats, std::string_view name) {
  return number_in(kOfRequest, stats, name);
}
void numbers(const RequestStats& stats, std::span<double> values) {
  numbers_in(kOfRequest, stats, values);
}
const char* request_number_name(size_t index) { return name_in(kOfRequest, index); }

size_t session_number_count() { return std::size(kOfSession) + std::size(kOfPlan); }
const char* session_number_name(size_t index) { return name_in(kOfSession, kOfPlan, index); }

std::string text(const MemoryPlan& plan, std::string_view name) {
  if (name == "composition") return plan.composition;
  if (name != "notes") refuse_name(name, "composition, notes");
  std::string lines;
  for (const std::string& note : plan.notes) lines += note + "\n";
  return lines;
}

std::string text(const v0::Session& session, std::string_view name) {
  if (name == "backend") return session.backend();
  if (name == "composition" || name == "notes") return text(session.memory(), name);
  refuse_name(name, "backend, composition, notes");
}

}  // namespace tiercel::detail
