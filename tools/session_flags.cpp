#include "tools/session_flags.h"

#include <fmt/ranges.h>

#include "engine/base/check.h"
#include "engine/expected_load.h"
#include "engine/known_models.h"
#include "engine/model.h"
#include "engine/option_rows.h"
#include "engine/sampler.h"
#include "engine/weight_store.h"
#include "tools/signals.h"

namespace tiercel {

void ModelFlags::add_to(Flags& flags, bool with_synthetic) {
  flags.section("Model");
  if (with_synthetic) {
    static const std::string help = fmt::format(
        "A known shape with random weights, instead of a model: {}", fmt::join(known_models(), ", "));
    flags.text("--synthetic", synthetic, help.c_str());
  }
  flags.text("-m,--model", directory,
             "Hugging Face directory: config.json, tokenizer.json, model.safetensors[.index.json]; or a GGUF file",
             "DIR|FILE");
  flags.uses("--model", Flags::FileUse::kReadModel, [this] { return directory; });
  add_model_options(flags, backend_, device_, n_threads, reach_, host_layers_, weight_form_);
}

BackendKind ModelFlags::backend() const {
  if (backend_ != BackendKind::kAuto) return backend_;
  return why_no_cuda().empty() ? BackendKind::kCuda : BackendKind::kCpu;
}

void ModelFlags::check(bool needs_backend) const {
  if (needs_backend && backend_ == BackendKind::kCuda) {
    const std::string reason = why_no_cuda();
    if (!reason.empty()) {
      fail(ErrorKind::kUsage, "--backend: expected auto or cpu, found cuda; {}", reason);
    }
  }
  if (directory.empty() && synthetic.empty()) {
    fail(ErrorKind::kUsage, "--model: expected a model, found none; add -m DIR, or -m FILE.gguf");
  }
  if (!directory.empty() && !synthetic.empty()) {
    fail(ErrorKind::kUsage, "--synthetic: expected either a model or a known shape, found both");
  }
}

std::shared_ptr<Model> ModelFlags::open(const ExpectedLoad& load) const {
  const StopsAtOnce at_once;
  return synthetic.empty() ? Model::open(directory, options(load)) : Model::synthetic(synthetic, options(load));
}

ModelConfig ModelFlags::config() const {
  ModelConfig config = synthetic.empty() ? load_config(directory) : known_model(synthetic);
  if (config.has_codes() && has_weights(directory)) {
    try {
      learn_from_checkpoint(config, directory);
    } catch (const Error&) {
      // Not all of it is there: what config.json says of it will do to plan.
    }
  }
  set_reach(config, reach_);
  set_weight_form(config, weight_form_);
  set_host_layers(config, host_layers_, backend());
  return config;
}

void ModelFlags::choose_host_layers(ModelConfig& config, const ExpectedLoad& load) const {
  if (host_layers_ != kAutoLayers || backend() != BackendKind::kCuda) return;
  config.host_layers = host_layers_for(config, load, /*device_free_bytes=*/0);
}

ModelOptions ModelFlags::options(const ExpectedLoad& load) const {
  return {.backend = backend_,
          .n_threads = static_cast<int>(n_threads),
          .device = static_cast<int>(device_),
          .reach = reach_,
          .host_layers = host_layers_,
          .weight_form = weight_form_,
          .load = load};
}

void add_session_flags(Flags& flags, SessionOptions& options) { add_session_options(flags, options); }

void refuse_audit(const SessionOptions& options) {
  if (options.audit > 0) {
    fail(ErrorKind::kUsage, "--audit: not in a batch; tiercel run audits a prompt by itself");
  }
}

void refuse_drafts(const SessionOptions& options, const char* command) {
  if (options.draft != DraftMode::kOff) {
    fail(ErrorKind::kUsage, "--draft: {} takes tokens one by one; run, batch and serve guess", command);
  }
}

void SamplingFlags::add_to(Flags& flags) {
  add_sampling_options(flags, wish_);
  add_form_options(flags, wish_.form);
}

SamplingOptions SamplingFlags::resolve(const ModelConfig& config, AnswerForms& forms, const Tokenizer& tokenizer,
                                       std::span<const int32_t> prompt, bool ignores_ends, bool strict,
                                       const Console& console) const {
  check_biases(wish_.logit_bias, config.vocab_size);
  SamplingRequest wish = wish_;
  wish.form.thoughts = begun_thoughts(tokenizer, prompt);
  const SamplingOptions options = resolve_sampling(wish, config.sampling, forms, ignores_ends);
  if (options.temperature == 0) {
    if (wish_.top_k || wish_.top_p || wish_.min_p) {
      console.warn_or_refuse(strict, "--top-k, --top-p and --min-p change nothing at temperature 0; add --temp 1");
    }
    return options;
  }
  console.info("sampling: temperature {}, top-k {}, top-p {}, min-p {}, seed {}",
               options.temperature, options.top_k, options.top_p, options.min_p, options.seed);
  return options;
}

}  // namespace tiercel
