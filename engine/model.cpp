#include "engine/model.h"

#include <cmath>

#include "engine/base/check.h"
#include "engine/fingerprint.h"
#include "engine/known_models.h"
#include "engine/saved_session.h"
#include "engine/weight_store.h"

namespace tiercel {

RopeTable LoadedModel::rope_table(const SessionPlan& plan) const {
  const RopeFrequencies rope =
      rope_frequencies(config_.rope, static_cast<int>(config_.head_dim), plan.long_rope);
  return RopeTable(rope.inv_freq, plan.context, rope.still_scale());
}

std::optional<RopeTable> LoadedModel::short_rope_table(const BatchPlan& plan) const {
  if (!plan.largest.long_rope) return std::nullopt;
  SessionPlan shorter = plan.largest;
  shorter.context = config_.rope.original_max_position;
  shorter.long_rope = false;
  return rope_table(shorter);
}

float LoadedModel::attention_scale() const {
  // Of a long context and of a short one it is the same.
  const RopeFrequencies rope =
      rope_frequencies(config_.rope, static_cast<int>(config_.head_dim), false);
  return static_cast<float>(rope.attention_scaling * rope.attention_scaling /
                            std::sqrt(static_cast<double>(config_.head_dim)));
}

namespace {

std::shared_ptr<Model> open_on_backend(const WeightSource& source, ModelConfig config,
                                       const ModelOptions& options) {
  const bool cuda = options.backend == BackendKind::kCuda ||
                    (options.backend == BackendKind::kAuto && why_no_cuda().empty());
  set_weight_form(config, options.weight_form);
  set_host_layers(config, options.host_layers, cuda ? BackendKind::kCuda : BackendKind::kCpu);
  std::shared_ptr<LoadedModel> model = cuda ? open_cuda_model(source, std::move(config), options)
                                            : open_cpu_model(source, std::move(config), options);
  model->set_fingerprint(fingerprint_of(model->config(), source.directory));
  return model;
}

}  // namespace

std::shared_ptr<Model> Model::open(const std::string& directory, const ModelOptions& options) {
  // The configuration first: its errors are the cheapest to find.
  ModelConfig config = load_config(directory);
  set_reach(config, options.reach);
  learn_from_checkpoint(config, directory);
  return open_on_backend({directory}, std::move(config), options);
}

std::shared_ptr<Model> Model::synthetic(const std::string& name, const ModelOptions& options) {
  ModelConfig config = known_model(name);
  set_reach(config, options.reach);
  return open_on_backend({}, std::move(config), options);
}

SessionPlan Session::plan(const Model& model, const SessionOptions& options, int64_t n_prompt,
                          int64_t n_new, bool logprobs) {
  PlanRequest request = dynamic_cast<const LoadedModel&>(model).plan_request();
  request.options = options;
  request.n_prompt = n_prompt;
  request.n_new = n_new;
  request.logprobs = logprobs;
  const SessionPlan plan = make_plan(request);
  check_limits(request, plan);
  return plan;
}

SessionPlan Session::plan(const Model& model, const SessionOptions& options,
                          const SavedSession& saved, int64_t n_new) {
  const auto& loaded = dynamic_cast<const LoadedModel&>(model);
  PlanRequest request = loaded.plan_request();
  request.options = options;
  request.n_prompt = saved.n_tokens();
  request.n_new = n_new;
  request.restored = true;
  SessionPlan plan = make_plan(request);
  plan.long_rope |= saved.long_rope();
  for (std::string& note : saved.notes_on(options)) {
    if (options.strict) fail(ErrorKind::kUsage, "{} (--strict)", note);
    plan.notes.push_back(std::move(note));
  }
  saved.check_fits(loaded.config(), loaded.fingerprint(), plan);
  check_limits(request, plan);
  return plan;
}

int64_t Session::saved_bytes(const Model& model, const SessionPlan& plan, int64_t n_prompt) {
  const auto& loaded = dynamic_cast<const LoadedModel&>(model);
  const KvLayout layout = kv_layout(plan, loaded.config());
  return session_image(loaded.config(), loaded.fingerprint(), plan,
                       state_after_prompt(layout, n_prompt))
      .file_bytes;
}

std::unique_ptr<Session> Session::open(std::shared_ptr<Model> model, const SessionPlan& plan) {
  auto loaded = std::dynamic_pointer_cast<LoadedModel>(std::move(model));
  CHECK(loaded != nullptr);
  LoadedModel& backend = *loaded;
  return backend.open_session(std::move(loaded), plan);
}

}  // namespace tiercel
