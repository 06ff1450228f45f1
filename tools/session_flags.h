// The flags that describe a model, a session and sampling, shared by the subcommands that need
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/config.h"
#include "engine/options.h"
#include "engine/presets.h"
#include "engine/sampling_request.h"
#include "engine/session.h"
#include "tools/console.h"
#include "tools/flags.h"

namespace tiercel {

struct ModelFlags {
  std::string directory;
  std::string synthetic;  // name of a known shape; empty: a directory is given
  int64_t n_threads = 0;
  // with_synthetic: for measurements, where a known shape with random weights will do.
  void add_to(Flags& flags, bool with_synthetic = false);
  // Throws Error(kUsage) when no model is given, or when --backend asks for what this build or this
  // machine lacks. An estimate needs no device.
  void check(bool needs_backend = true) const;
  // The backend that --backend means here.
  BackendKind backend() const;
  // load: what it is opened for.
  ModelOptions options(const ExpectedLoad& load) const;
  std::shared_ptr<Model> open(const ExpectedLoad& load) const;
  ModelConfig config() const;
  // Of an estimate, which opens nothing: as many host layers as the load needs, if nobody says how many.
  void choose_host_layers(ModelConfig& config, const ExpectedLoad& load) const;
  std::string name() const { return synthetic.empty() ? directory : synthetic + " (synthetic)"; }

 private:
  BackendKind backend_ = BackendKind::kAuto;
  int64_t device_ = 0;
  ReachOptions reach_;
  int64_t host_layers_ = kAutoLayers;
  WeightForm weight_form_ = WeightForm::kStored;
};

// Fills `options`, which must outlive `flags`.
void add_session_flags(Flags& flags, SessionOptions& options);

// Throws Error(kUsage) where an audit is asked for, of which a batch has none.
void refuse_audit(const SessionOptions& options);
// And where drafts are, by a command that looks at steps one by one.
void refuse_drafts(const SessionOptions& options, const char* command);

struct SamplingFlags {
  void add_to(Flags& flags);
  // Flags over generation_config.json over greedy. Draws (and announces) a seed when none is given.
  // strict: what would be a warning is an Error(kUsage).
  // Throws as AnswerForms::constraint.
  // prompt: what is answered.
  SamplingOptions resolve(const ModelConfig& config, AnswerForms& forms, const Tokenizer& tokenizer,
                          std::span<const int32_t> prompt, bool ignores_ends, bool strict, const Console& console) const;
  const SamplingRequest& wish() const { return wish_; }

 private:
  SamplingRequest wish_;
};

}  // namespace tiercel
