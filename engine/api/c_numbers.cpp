#include "engine/api/c_numbers.h"

#include <iterator>
#include <variant>

#include "engine/api/state.h"

namespace tiercel::detail {
namespace {

template <typename T>
struct Number {
  const char* name;
  std::variant<int64_t T::*, double T::*, uint64_t T::*> field;
  double of(const T& object) const {
    return std::visit([&](auto member) { return static_cast<double>(object.*member); }, field);
  }
};

using v0::MemoryPlan;
using v0::ModelInfo;
using v0::Stats;

const Number<ModelInfo> kOfModel[] = {
    {"layers", &ModelInfo::n_layers},
    {"vocab-size", &ModelInfo::vocab_size},
    {"max-positions", &ModelInfo::max_positions},
    {"parameters", &ModelInfo::parameters},
    {"weight-bytes", &ModelInfo::weight_bytes},
    {"bos-token", &ModelInfo::bos_token},
};

const Number<MemoryPlan> kOfPlan[] = {
    {"weights", &MemoryPlan::weights},
    {"keys", &MemoryPlan::keys},
    {"values", &MemoryPlan::values},
    {"landmarks", &MemoryPlan::landmarks},
    {"slots", &MemoryPlan::slots},
    {"exact", &MemoryPlan::exact},
    {"activations", &MemoryPlan::activations},
    {"device-total", &MemoryPlan::device_total},
    {"host-keys", &MemoryPlan::host_keys},
    {"host-values", &MemoryPlan::host_values},
    {"host-staging", &MemoryPlan::host_staging},
    {"host-total", &MemoryPlan::host_total},
    {"process", &MemoryPlan::process},
    {"resident", &MemoryPlan::resident},
    {"context", &MemoryPlan::context},
};

const Number<Stats> kOfSession[] = {
    {"prompt-tokens", &Stats::prompt_tokens},
    {"generated-tokens", &Stats::generated_tokens},
    {"decode-steps", &Stats::decode_steps},
    {"open-seconds", &Stats::open_seconds},
    {"prefill-seconds", &Stats::prefill_seconds},
    {"decode-seconds", &Stats::decode_seconds},
    {"seed", &Stats::seed},
    {"selections", &Stats::selections},
    {"selected-chunks", &Stats::selected_chunks},
    {"hit-chunks", &Stats::hit_chunks},
    {"fetched-bytes", &Stats::fetched_bytes},
    {"decisions", &Stats::decisions},
    {"reused", &Stats::reused},
    {"audited-steps", &Stats::audited_steps},
    {"audit-mass-mean", &Stats::audit_mass_mean},
    {"audit-mass-p05", &Stats::audit_mass_p05},
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

}  // namespace

double number(const ModelInfo& info, std::string_view name) {
  return number_in(kOfModel, info, name);
}
double number(const MemoryPlan& plan, std::string_view name) {
  return number_in(kOfPlan, plan, name);
}

double number(const v0::Session& session, std::string_view name) {
  std::string names;
  if (const auto* found = find(kOfSession, name, names)) return found->of(session.stats());
  if (const auto* found = find(kOfPlan, name, names)) return found->of(session.memory());
  refuse_name(name, names);
}

size_t session_number_count() { return std::size(kOfSession) + std::size(kOfPlan); }

const char* session_number_name(size_t index) {
  if (index < std::size(kOfSession)) return kOfSession[index].name;
  index -= std::size(kOfSession);
  return index < std::size(kOfPlan) ? kOfPlan[index].name : nullptr;
}

std::string text(const v0::Session& session, std::string_view name) {
  if (name == "backend") return session.backend();
  if (name == "composition") return session.memory().composition;
  if (name != "notes") refuse_name(name, "backend, composition, notes");
  std::string lines;
  for (const std::string& note : session.memory().notes) lines += note + "\n";
  return lines;
}

}  // namespace tiercel::detail
