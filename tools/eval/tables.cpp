#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/base/units.h"
#include "tools/eval/results.h"
#include "tools/table.h"

namespace tiercel {
namespace {

using Cells = std::vector<std::vector<std::string>>;

std::string percent(double share) {
  return std::isnan(share) ? "-" : fmt::format("{:.1f}", 100 * share);
}
std::string nats(double kl) { return std::isnan(kl) ? "-" : fmt::format("{:.3g}", kl); }
std::string fetched(const Traffic& traffic) {
  const double bytes = traffic.fetched_per_step();
  return std::isnan(bytes) ? "-" : format_bytes(std::llround(bytes));
}

std::vector<std::string> row_of(const EvalResults& results, const std::string& task, int64_t length,
                                size_t series, const EvalSummary& summary) {
  const EvalPlan* plan = results.plan_of(series, length);
  std::vector<std::string> row = {task,
                                  format_count(length),
                                  results.series[series].name,
                                  plan != nullptr ? plan->budget_text : "-",
                                  std::to_string(summary.n),
                                  percent(summary.score)};
  if (!results.reference.empty()) {
    row.push_back(percent(summary.kept));
    row.push_back(nats(summary.fidelity.kl()));
    row.push_back(summary.fidelity.steps > 0 ? nats(summary.fidelity.kl_max) : "-");
    row.push_back(percent(summary.fidelity.agreement()));
    row.push_back(percent(summary.traffic.mass()));
  }
  row.push_back(percent(summary.traffic.hit_rate()));
  row.push_back(fetched(summary.traffic));
  row.push_back(plan != nullptr ? format_bytes(plan->device_bytes) : "-");
  row.push_back(plan != nullptr ? format_bytes(plan->host_bytes) : "-");
  return row;
}

std::string main_table(const EvalResults& results) {
  std::vector<std::string> header = {"task", "tokens", "composition", "budget + always",
                                     "n",    "score %"};
  if (!results.reference.empty()) {
    header.insert(header.end(), {"kept %", "KL nats", "KL max", "agree %", "mass %"});
  }
  header.insert(header.end(), {"hit %", "fetched/step", "device", "host"});
  Cells cells = {header};
  const std::vector<EvalTask> tasks = results.tasks();
  for (const int64_t length : results.lengths()) {
    const auto add = [&](const std::string& name, std::optional<EvalTask> task) {
      for (size_t s = 0; s < results.series.size(); ++s) {
        const EvalSummary summary = summarize(results, [&](const EvalRecord& r) {
          return r.length == length && r.series == s && (!task || r.task == *task);
        });
        if (summary.n > 0) cells.push_back(row_of(results, name, length, s, summary));
      }
    };
    for (const EvalTask task : tasks) add(name_of(task), task);
    if (tasks.size() > 1) add("all", std::nullopt);
  }
  return markdown_table(cells);
}

// Depth by length, of one series.
std::string depth_grid(const EvalResults& results, size_t series) {
  const std::vector<int64_t> lengths = results.lengths();
  std::vector<std::string> header = {results.series[series].name + ": score % at depth"};
  for (const int64_t length : lengths) header.push_back(format_count(length));
  Cells cells = {header};
  for (const double depth : results.depths) {
    cells.push_back({percent(depth)});
    for (const int64_t length : lengths) {
      cells.back().push_back(percent(summarize(results, [&](const EvalRecord& r) {
                                       return r.series == series && r.length == length &&
                                              r.depth == depth;
                                     }).score));
    }
  }
  return markdown_table(cells);
}

std::string layer_table(const EvalResults& results) {
  std::vector<std::vector<double>> masses;
  std::vector<std::string> header = {"attention mass covered %, layer"};
  size_t n_layers = 0;
  for (size_t s = 0; s < results.series.size(); ++s) {
    const auto mass =
        summarize(results, [&](const EvalRecord& r) { return r.series == s; }).traffic.layer_mass();
    if (mass.empty()) continue;
    n_layers = std::max(n_layers, mass.size());
    header.push_back(results.series[s].name);
    masses.push_back(mass);
  }
  if (masses.empty()) return "";
  Cells cells = {header};
  for (size_t layer = 0; layer < n_layers; ++layer) {
    cells.push_back({std::to_string(layer)});
    for (const auto& mass : masses) {
      cells.back().push_back(percent(layer < mass.size() ? mass[layer] : NAN));
    }
  }
  return markdown_table(cells);
}

}  // namespace

std::string eval_tables(const EvalResults& results) {
  std::string text = main_table(results);
  if (results.depths.size() > 1) {
    for (size_t s = 0; s < results.series.size(); ++s) {
      text += fmt::format("\n{}", depth_grid(results, s));
    }
  }
  if (!results.reference.empty()) {
    const std::string layers = layer_table(results);
    if (!layers.empty()) text += fmt::format("\n{}", layers);
    text += fmt::format(
        "\nKL, agreement: against {}, step by step over its greedy tokens; kept: of what it "
        "answered "
        "right.\n",
        results.reference);
  }
  if (results.shared_prefill) {
    text +=
        "\nBudgets of a composition share a session, whose selection cache is as large as the "
        "largest "
        "one\nasks for: hit rates of the others are better than by themselves (--separate measures "
        "those).\n";
  }
  text += "\n";
  for (const EvalSeries& series : results.series) {
    text += fmt::format("{}: {}\n", series.name, series.composition);
  }
  return text;
}

}  // namespace tiercel
