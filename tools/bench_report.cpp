#include "tools/bench_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/base/build_info.h"
#include "engine/base/units.h"
#include "tools/report.h"
#include "tools/session_flags.h"
#include "tools/table.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

std::vector<double> rates(const BenchRow& row) {
  std::vector<double> values;
  for (const double seconds : row.seconds) {
    values.push_back(static_cast<double>(row.n_tokens()) / seconds);
  }
  return values;
}

std::string test_name(const BenchRow& row) {
  if (row.n_gen == 0 && row.n_depth > 0) return fmt::format("pp{} @ d{}", row.n_prompt, row.n_depth);
  if (row.n_gen == 0) return fmt::format("pp{}", row.n_prompt);
  return fmt::format("tg{} @ d{}", row.n_gen, row.n_depth);
}

double per_second(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

double fetch_rate(const BenchRow& row) {
  return per_second(row.selection.fetched_bytes, row.step_fetch_seconds);
}

// What every row begins with.
Json setup_json(const BenchSetup& setup, const SessionOptions& o) {
  return {{"build_commit", source_commit()},
          {"version", version()},
          {"backend", setup.backend},
          {"model_filename", setup.model},
          {"model_size", setup.weight_bytes},
          {"model_n_params", setup.n_parameters},
          {"synthetic", setup.synthetic},
          {"random_tokens", setup.random_tokens},
          {"imposed_hit_rate", o.imposed_hit_rate >= 0 ? Json(o.imposed_hit_rate) : Json(nullptr)}};
}

Json to_json(const BenchSetup& setup, const BenchRow& row) {
  const SessionOptions& o = row.plan.options;
  std::vector<double> samples_ns;
  for (const double seconds : row.seconds) samples_ns.push_back(1e9 * seconds);
  const Spread ns = spread_of(samples_ns), ts = spread_of(rates(row));
  Json json = setup_json(setup, o);
  json.update({{"n_prompt", row.n_gen > 0 ? 0 : row.n_prompt},
          {"n_gen", row.n_gen},
          {"n_depth", row.n_depth},
          {"attention", name_of(o.attention)},
          {"prefill", name_of(o.prefill)},
          {"budget", o.selection.budget == kBudgetAll ? Json("all") : Json(o.selection.budget)},
          {"avg_ns", ns.mean},
          {"stddev_ns", ns.deviation},
          {"avg_ts", ts.mean},
          {"stddev_ts", ts.deviation},
          {"samples_ns", samples_ns},
          {"samples_ts", rates(row)},
          {"device_bytes", row.plan.memory.device.total()},
          {"device_bytes_in_use", row.device_bytes_in_use},
          {"key_coding_seconds", row.key_coding_seconds > 0 ? Json(row.key_coding_seconds) : Json(nullptr)},
          {"host_bytes", row.plan.memory.host.total()},
          {"hit_rate", row.selection.selected_chunks > 0 ? Json(row.selection.hit_rate()) : Json(nullptr)},
          {"fetched_bytes_per_second", fetch_rate(row)},
          {"time_to_first_token_seconds", row.time_to_first_token},
          {"token_p50_seconds", percentile_of(row.token_seconds, 0.5)},
          {"token_p95_seconds", percentile_of(row.token_seconds, 0.95)}});
  return json;
}

std::string gib(int64_t bytes) {
  return fmt::format("{:.2f}", static_cast<double>(bytes) / (1 << 30));
}

// Millions or billions, as llama-bench writes them.
std::string parameters(int64_t n) {
  const auto count = static_cast<double>(n);
  return n < 1'000'000'000 ? fmt::format("{:.2f} M", count * 1e-6)
                           : fmt::format("{:.2f} B", count * 1e-9);
}

std::string budget_of(const SessionOptions& o) {
  if (o.attention == AttentionMode::kDense) return "-";
  return o.selection.budget == kBudgetAll ? "all" : std::to_string(o.selection.budget);
}

// The cells of the table, header first.
std::vector<std::vector<std::string>> cells(const BenchSetup& setup,
                                            const std::vector<BenchRow>& rows) {
  std::vector<std::vector<std::string>> table = {
      {"model", "size", "params", "backend", "test", "t/s", "device GiB", "host GiB", "attention",
       "budget", "hit rate", "fetch GB/s", "ttft s", "p50 ms", "p95 ms"}};
  for (const BenchRow& row : rows) {
    const SessionOptions& o = row.plan.options;
    const Spread ts = spread_of(rates(row));
    const bool decode = row.n_gen > 0, selects = row.selection.selected_chunks > 0;
    const bool imposed = o.imposed_hit_rate >= 0;
    table.push_back(
        {setup.model, format_bytes(setup.weight_bytes),
         parameters(setup.n_parameters), setup.backend,
         test_name(row), fmt::format("{:.2f} ± {:.2f}", ts.mean, ts.deviation),
         gib(row.plan.memory.device.total()), gib(row.plan.memory.host.total()),
         decode ? name_of(o.attention) : name_of(o.prefill),
         budget_of(o),
         selects ? fmt::format("{:.3f}{}", row.selection.hit_rate(), imposed ? " (imposed)" : "")
                 : "-",
         selects ? fmt::format("{:.2f}", 1e-9 * fetch_rate(row)) : "-",
         fmt::format("{:.3f}", row.time_to_first_token),
         decode ? fmt::format("{:.3f}", 1e3 * percentile_of(row.token_seconds, 0.5)) : "-",
         decode ? fmt::format("{:.3f}", 1e3 * percentile_of(row.token_seconds, 0.95)) : "-"});
  }
  return table;
}

// What attended, in a word or two.
std::string label_of(const BatchRow& row, const SessionOptions& o) {
  if (row.test.rival == BenchRival::kDense) return "dense";
  return name_of(o.attention) + std::string(row.test.rival == BenchRival::kDevice ? ", on device" : "");
}

Json to_json(const BenchSetup& setup, const BatchRow& row) {
  const SessionOptions& o = row.plan.options;
  const BatchTest& test = row.test;
  const int64_t n = row.n_sequences, n_prompt_tokens = test.prompt_tokens(n);
  Json json = setup_json(setup, o);
  json.update({{"attention", n > 0 ? Json(label_of(row, o)) : Json(name_of(test.rival))},
          {"composition", n > 0 ? Json(composition(o)) : Json(nullptr)},
          {"refusal", row.refusal.empty() ? Json(nullptr) : Json(row.refusal)},
          {"n_batch_wanted", row.n_wanted},
          {"pp", test.n_prompt},
          {"n_behind", test.n_behind},
          {"tg", test.n_gen},
          {"pl", n},
          {"micro_batches", row.micro_batches},
          {"kernels_per_step", row.step_launches > 0 ? Json(row.step_launches) : Json(nullptr)},
          {"replayed_steps", row.replayed_steps},
          {"n_kv", test.context_tokens(n)},
          {"t_pp", row.prompt_seconds},
          {"speed_pp", per_second(n_prompt_tokens, row.prompt_seconds)},
          {"t_tg", row.step_seconds},
          {"speed_tg", per_second(row.step_tokens, row.step_seconds)},
          {"t", row.prompt_seconds + row.step_seconds},
          {"speed", per_second(n_prompt_tokens + row.step_tokens,
                               row.prompt_seconds + row.step_seconds)},
          {"budget", budget_of(o)},
          {"device_bytes", row.device_bytes},
          {"host_bytes", row.host_bytes},
          {"device_memory", o.device_memory},
          {"host_memory", o.host_memory},
          {"hit_rate", row.selection.selected_chunks > 0 ? Json(row.selection.hit_rate()) : Json(nullptr)},
          {"fetched_bytes_per_second", per_second(row.selection.fetched_bytes, row.step_seconds)},
          {"token_p50_seconds", percentile_of(row.token_seconds, 0.5)},
          {"token_p95_seconds", percentile_of(row.token_seconds, 0.95)}});
  return json;
}

std::vector<std::vector<std::string>> batch_cells(const BenchSetup&,
                                                  const std::vector<BatchRow>& rows) {
  std::vector<std::vector<std::string>> table = {
      {"PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s",
       "behind", "attention", "budget", "keys", "device GiB", "host GiB", "hit rate", "fetch GB/s", "p50 ms",
       "p95 ms"}};
  for (const BatchRow& row : rows) {
    const SessionOptions& o = row.plan.options;
    const BatchTest& test = row.test;
    const int64_t n = row.n_sequences, n_prompt_tokens = test.prompt_tokens(n);
    const std::string behind = test.n_behind > 0 ? std::to_string(test.n_behind) : "-";
    if (n == 0) {
      std::vector<std::string> none(table[0].size(), "-");
      none[0] = std::to_string(test.n_prompt);
      none[1] = std::to_string(test.n_gen);
      none[2] = "0";
      none[10] = behind;
      none[11] = fmt::format("{}: does not fit", name_of(test.rival));
      table.push_back(none);
      continue;
    }
    const auto f2 = [](double v) { return fmt::format("{:.2f}", v); };
    const auto ms = [&](double share) { return f2(1e3 * percentile_of(row.token_seconds, share)); };
    const double seconds = row.prompt_seconds + row.step_seconds;
    const bool selects = row.selection.selected_chunks > 0, dense = o.attention == AttentionMode::kDense;
    table.push_back(
        {std::to_string(test.n_prompt), std::to_string(test.n_gen), std::to_string(n),
         std::to_string(test.context_tokens(n)), f2(row.prompt_seconds),
         f2(per_second(n_prompt_tokens, row.prompt_seconds)), f2(row.step_seconds),
         f2(per_second(row.step_tokens, row.step_seconds)), f2(seconds),
         f2(per_second(n_prompt_tokens + row.step_tokens, seconds)), behind, label_of(row, o), budget_of(o),
         dense ? "-" : name_of(o.selection.key_codec), gib(row.device_bytes), gib(row.host_bytes),
         selects ? fmt::format("{:.3f}{}", row.selection.hit_rate(),
                               o.imposed_hit_rate >= 0 ? " (imposed)" : "")
                 : "-",
         selects ? f2(1e-9 * per_second(row.selection.fetched_bytes, row.step_seconds)) : "-",
         ms(0.5), ms(0.95)});
  }
  return table;
}

std::string csv(const std::vector<std::vector<std::string>>& table) {
  std::string text;
  for (const auto& row : table) {
    for (size_t i = 0; i < row.size(); ++i) {
      std::string cell = row[i];
      for (size_t at = 0; (at = cell.find('"', at)) != std::string::npos; at += 2) {
        cell.insert(at, 1, '"');
      }
      text += fmt::format("{}\"{}\"", i > 0 ? "," : "", cell);
    }
    text += "\n";
  }
  return text;
}

}  // namespace

Spread spread_of(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto n = static_cast<double>(values.size());
  Spread spread;
  spread.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  for (const double v : values) spread.deviation += (v - spread.mean) * (v - spread.mean);
  spread.deviation = values.size() > 1 ? std::sqrt(spread.deviation / (n - 1)) : 0;
  return spread;
}

double percentile_of(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto rank = std::ceil(share * static_cast<double>(values.size()));
  const auto at = static_cast<size_t>(std::max(rank, 1.0)) - 1;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

namespace {

// The rows as JSON objects or as a table, in any of the formats.
template <typename Row, typename ToCells>
std::string text_of(const BenchSetup& setup, const std::vector<Row>& rows, BenchFormat format,
                    ToCells to_cells) {
  switch (format) {
    case BenchFormat::kMarkdown: return markdown_table(to_cells(setup, rows));
    case BenchFormat::kCsv: return csv(to_cells(setup, rows));
    case BenchFormat::kJson: {
      Json all = Json::array();
      for (const Row& row : rows) all.push_back(to_json(setup, row));
      return all.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
    }
    case BenchFormat::kJsonLines: {
      std::string text;
      for (const Row& row : rows) {
        text += to_json(setup, row).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
      }
      return text;
    }
  }
  return {};
}

}  // namespace

std::string bench_text(const BenchSetup& setup, const std::vector<BenchRow>& rows,
                       BenchFormat format) {
  return text_of(setup, rows, format, cells);
}

std::string batch_text(const BenchSetup& setup, const std::vector<BatchRow>& rows,
                       BenchFormat format) {
  return text_of(setup, rows, format, batch_cells);
}

}  // namespace tiercel
