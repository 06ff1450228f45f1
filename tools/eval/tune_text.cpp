#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/base/build_info.h"
#include "engine/base/units.h"
#include "tools/eval/tune.h"
#include "tools/report.h"
#include "tools/table.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const TuneCandidate& c) {
  return {{"composition", c.composition},
          {"flags", c.flags},
          {"selected_tokens",
           c.planned.selected == kBudgetAll ? Json("all") : Json(c.planned.selected)},
          {"protected_tokens", c.planned.always},
          {"kl_mean", c.loss()},
          {"kl_max", c.fidelity.kl_max},
          {"agreement", c.fidelity.agreement()},
          {"seconds_per_token", c.seconds_per_token()},
          {"hit_rate", c.traffic.hit_rate()},
          {"fetched_bytes_per_step", c.traffic.fetched_per_step()},
          {"device_bytes", sequence_device_bytes(c.planned.plan.memory)},
          {"device_total_bytes", c.planned.plan.memory.device.total()},
          {"host_bytes", c.planned.plan.memory.host.total()}};
}

std::string number(double value, const char* unit_format) {
  return std::isnan(value) ? "-" : fmt::format(fmt::runtime(unit_format), value);
}

}  // namespace

std::string tune_table(const TuneResult& result, const std::string& model) {
  std::vector<std::vector<std::string>> cells = {{"", "composition", "budget + always", "KL nats",
                                                  "KL max", "agree %", "ms/token", "fetched/step",
                                                  "device", "host"}};
  for (size_t i = 0; i < result.candidates.size(); ++i) {
    const TuneCandidate& c = result.candidates[i];
    const double fetched = c.traffic.fetched_per_step();
    cells.push_back({i == result.best ? "*" : "", c.composition, c.planned.budget_text(),
                     number(c.loss(), "{:.3g}"), number(c.fidelity.kl_max, "{:.3g}"),
                     number(100 * c.fidelity.agreement(), "{:.1f}"),
                     number(1e3 * c.seconds_per_token(), "{:.2f}"),
                     std::isnan(fetched) ? "-" : format_bytes(std::llround(fetched)),
                     format_bytes(sequence_device_bytes(c.planned.plan.memory)),
                     format_bytes(c.planned.plan.memory.host.total())});
  }
  std::string text = markdown_table(cells);
  text += fmt::format("\n{} prompt tokens; loss: mean KL over {} greedy tokens, against {}.\n",
                      format_count(result.n_prompt), format_count(result.n_steps),
                      describe(result.reference));
  for (const std::string& line : result.skipped) text += "skipped: " + line + "\n";
  const TuneCandidate& best = result.candidates[result.best];
  text += fmt::format("best (*): {:.3g} nats, {:.2f} ms per token\n  tiercel run -m {} {}\n",
                      best.loss(), 1e3 * best.seconds_per_token(), model, best.flags);
  return text;
}

std::string tune_json(const TuneResult& result, const std::string& model) {
  Json candidates = Json::array();
  for (const TuneCandidate& c : result.candidates) candidates.push_back(to_json(c));
  const Json json = {{"version", version()},
                     {"commit", source_commit()},
                     {"model", model},
                     {"reference", describe(result.reference)},
                     {"prompt_tokens", result.n_prompt},
                     {"compared_steps", result.n_steps},
                     {"best", result.best},
                     {"candidates", candidates},
                     {"skipped", result.skipped}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace tiercel
