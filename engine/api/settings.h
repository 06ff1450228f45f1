// Options by name: what the library's setters take, from the same rows as the command's flags.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "engine/option_sink.h"
#include "engine/options.h"
#include "engine/sampling_request.h"
#include "engine/tiercel.h"

namespace tiercel::detail {

// Everything that an option can change.
struct Settings {
  BackendKind backend = BackendKind::kAuto;
  int64_t device = 0, n_threads = 0;
  ReachOptions reach;
  int64_t host_layers = kAutoLayers;
  WeightForm weight_form = WeightForm::kStored;
  SessionOptions session;
  SamplingRequest sampling;
  int64_t n_predict = 512, n_logprobs = -1;
  bool ignore_eos = false, no_bos = false, special = false;
  int64_t parallel = 8, max_prompt = 0;  // of a batch
  double max_gap = 0.1;                  // seconds
  MicroBatches micro_batches = MicroBatches::kAuto;
};

// Where an option counts. One of a session is also that of a batch, for all that is in it; one of a
// request is also that of a session, and of a batch as the default of its requests.
enum class OptionScope : uint8_t { kEngine, kSession, kBatch, kRequest };

// The sink that engine/option_rows.h fills. A row's setter writes into the Settings that the table
// was made for, which must outlive it.
class OptionTable : public OptionSink {
 public:
  struct Row {
    std::vector<std::string> names;  // without dashes, the canonical one first
    std::string type, initial, help;
    OptionScope scope;
    std::function<void(const std::string&)> set;  // throws Error(kUsage) without the name
  };
  explicit OptionTable(Settings& settings);

  const std::vector<Row>& rows() const { return rows_; }
  // Throws v0::Error(kUsage) listing the names.
  const Row& find(const std::string& name) const;

  // ---- the sink ----
  void section(const char*) {}
  void value(const char* names, const char* type, const std::string& initial, const char* help,
             std::function<void(const std::string&)> set) override;
  void flag(const char* names, bool& target, const char* help) override;

 private:
  std::vector<Row> rows_;
  OptionScope scope_ = OptionScope::kEngine;
};

// Into settings: of every option the first value that one of these has. In the order of the table,
// so that a preset comes before what changes it.
void apply(std::initializer_list<const v0::Options*> first_wins, Settings& settings);
// The defaults, overruled so.
Settings resolve(std::initializer_list<const v0::Options*> first_wins);

// Throw v0::Error(kUsage) naming an option that does not count there.
void require_session_options(const v0::Options& options);
void require_batch_options(const v0::Options& options);
void require_request_options(const v0::Options& options);

}  // namespace tiercel::detail
