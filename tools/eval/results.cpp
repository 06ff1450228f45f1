#include "tools/eval/results.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/base/build_info.h"
#include "tools/report.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

// nlohmann writes NaN as null.
Json summary_json(const EvalSummary& summary) {
  const Fidelity& fidelity = summary.fidelity;
  const Traffic& traffic = summary.traffic;
  return {{"questions", summary.n},
          {"score", summary.score},
          {"kept", summary.kept},
          {"compared_steps", fidelity.steps},
          {"kl_mean", fidelity.kl()},
          {"kl_max", fidelity.steps > 0 ? Json(fidelity.kl_max) : Json(nullptr)},
          {"agreement", fidelity.agreement()},
          {"mass_mean", traffic.mass()},
          {"mass_p05_lowest", traffic.audited_steps > 0 ? Json(traffic.mass_p05) : Json(nullptr)},
          {"layer_mass", traffic.layer_mass()},
          {"steps", traffic.steps},
          {"hit_rate", traffic.hit_rate()},
          {"reuse_rate", traffic.reuse_rate()},
          {"fetched_bytes_per_step", traffic.fetched_per_step()}};
}

Json tokens_json(int64_t tokens) { return tokens == kBudgetAll ? Json("all") : Json(tokens); }

Json cells_json(const EvalResults& results) {
  Json cells = Json::array();
  for (const int64_t length : results.lengths()) {
    for (const EvalTask task : results.tasks()) {
      for (size_t s = 0; s < results.series.size(); ++s) {
        const EvalSummary summary = summarize(results, [&](const EvalRecord& r) {
          return r.length == length && r.task == task && r.series == s;
        });
        if (summary.n == 0) continue;
        Json cell = {{"task", name_of(task)}, {"length", length}, {"series", s}};
        cell.update(summary_json(summary));
        cells.push_back(cell);
      }
    }
  }
  return cells;
}

Json record_json(const EvalRecord& record) {
  const Answer& answer = record.answer;
  return {{"task", name_of(record.task)},
          {"length", record.length},
          {"tokens", record.n_tokens},
          {"sample", record.sample},
          {"series", record.series},
          {"depth", record.depth ? Json(*record.depth) : Json(nullptr)},
          {"expected", record.expected},
          {"output", answer.text},
          {"output_tokens", answer.tokens},
          {"score", answer.score},
          {"compared_steps", answer.fidelity.steps},
          {"kl_mean", answer.fidelity.kl()},
          {"agreement", answer.fidelity.agreement()}};
}

}  // namespace

const EvalPlan* EvalResults::plan_of(size_t series_index, int64_t length) const {
  for (const EvalPlan& plan : plans) {
    if (plan.series == series_index && plan.length == length) return &plan;
  }
  return nullptr;
}

std::vector<EvalTask> EvalResults::tasks() const {
  std::vector<EvalTask> all;
  for (const EvalRecord& record : records) {
    if (std::find(all.begin(), all.end(), record.task) == all.end()) all.push_back(record.task);
  }
  return all;
}

std::vector<int64_t> EvalResults::lengths() const {
  std::vector<int64_t> all;
  for (const EvalRecord& record : records) {
    if (std::find(all.begin(), all.end(), record.length) == all.end()) all.push_back(record.length);
  }
  return all;
}

std::string eval_json(const EvalResults& results) {
  Json series = Json::array(), plans = Json::array(), records = Json::array();
  for (const EvalSeries& one : results.series) {
    series.push_back({{"name", one.name},
                      {"composition", one.composition},
                      {"reference", one.reference},
                      {"swept", one.swept ? Json(*one.swept) : Json(nullptr)}});
  }
  for (const EvalPlan& plan : results.plans) {
    plans.push_back({{"series", plan.series},
                     {"length", plan.length},
                     {"selected_tokens", tokens_json(plan.selected)},
                     {"protected_tokens", plan.always},
                     {"device_bytes", plan.device_bytes},
                     {"host_bytes", plan.host_bytes}});
  }
  for (const EvalRecord& record : results.records) records.push_back(record_json(record));
  const Json json = {
      {"version", version()},
      {"commit", source_commit()},
      {"backend", results.backend},
      {"model", results.model},
      {"style", results.style},
      {"seed", results.seed},
      {"interrupted", results.interrupted},
      {"shared_prefill", results.shared_prefill},
      {"swept_flag", results.swept_flag.empty() ? Json(nullptr) : Json(results.swept_flag)},
      {"reference", results.reference.empty() ? Json(nullptr) : Json(results.reference)},
      {"series", series},
      {"plans", plans},
      {"cells", cells_json(results)},
      {"records", records},
      {"notes", results.notes}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace tiercel
