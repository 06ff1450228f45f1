// What tiercel bench measured, and the formats it is written in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/session.h"
#include "tools/bench_batch.h"

namespace tiercel {

enum class BenchFormat : uint8_t { kMarkdown, kCsv, kJson, kJsonLines };

// One line of the table: a prefill of n_prompt tokens, behind n_depth others if that is not 0, or n_gen steps
// behind n_depth tokens.
struct BenchRow {
  int64_t n_prompt = 0, n_gen = 0, n_depth = 0;
  std::vector<double> seconds;        // per repetition
  std::vector<double> token_seconds;  // of decode steps, all repetitions
  double time_to_first_token = 0;     // seconds, mean over repetitions
  SelectionReport selection;          // of the last repetition
  double step_fetch_seconds = 0;      // time of the steps that selection counted
  int64_t device_bytes_in_use = 0;    // Session::device_bytes_in_use
  double key_coding_seconds = 0;      // Session::key_coding_seconds
  SessionPlan plan;

  int64_t n_tokens() const { return n_gen > 0 ? n_gen : n_prompt; }
};

// What all rows share.
struct BenchSetup {
  std::string model, backend;
  int64_t n_parameters = 0, weight_bytes = 0;
  bool synthetic = false, random_tokens = true;
};

// Mean and sample standard deviation.
struct Spread {
  double mean = 0, deviation = 0;
};
Spread spread_of(const std::vector<double>& values);
// The smallest value that at least this share of the values does not exceed; 0 without values.
double percentile_of(std::vector<double> values, double share);

std::string bench_text(const BenchSetup& setup, const std::vector<BenchRow>& rows,
                       BenchFormat format);
// PP TG B N_KV T_PP S_PP T_TG S_TG T S as llama-batched-bench has them, then ours.
std::string batch_text(const BenchSetup& setup, const std::vector<BatchRow>& rows,
                       BenchFormat format);

// Throughput by sequences and by context as SVG, from the JSON (or its lines) that batch_text wrote.
// Throws Error(kRuntime) naming what is missing; `name` heads the message.
std::string batch_picture(const std::string& json, const std::string& name);

}  // namespace tiercel
