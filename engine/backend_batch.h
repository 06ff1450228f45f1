// A batch on one backend: the same code for every pair of tiers.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/append_pass.h"
#include "engine/base/check.h"
#include "engine/batch_layout.h"
#include "engine/batch_plan.h"
#include "engine/cost_model.h"
#include "engine/decoder.h"
#include "engine/model.h"
#include "engine/session_backend.h"
#include "engine/step_recorder.h"
#include "engine/tier_rates.h"

namespace tiercel {

template <Backend Device, HostTier Host>
class BackendBatch : public Batch {
 public:
  BackendBatch(std::shared_ptr<LoadedModel> model, const BatchPlan& plan,
               SessionBackend<Device, Host> backend)
      : model_(std::move(model)),
        plan_(plan),
        backend_(std::move(backend)),
        config_(model_->config()),
        layout_(config_, plan.largest.n_prompt, plan.largest.context, plan.n_sequences, plan.largest.draft, kStaged),
        device_arena_(backend_.device, "device", 0),
        host_arena_(backend_.host, "host", 0),
        workspace_(device_arena_, kv_layout(plan.largest, config_)),
        transformer_(backend_.device, backend_.upload, device_arena_, config_, backend_.weights,
                     layout_.transformer),
        recorder_(backend_.device, kLeastToRecord),
        sampler_(backend_.device, device_arena_, host_arena_, layout_.sampler) {
    measure_tiers();
    hidden_ = device_arena_.template take<bf16>(Purpose::kActivations, layout_.hidden);
    if (!kStaged) return;
    int64_t* clock = device_arena_.template take<int64_t>(Purpose::kActivations, layout_.clock);
    if (!plan.largest.options.no_graphs) recorder_.record_by(clock);
    ids_ = device_arena_.template take<int32_t>(Purpose::kActivations, layout_.ids);
    host_ids_ = host_arena_.template take<int32_t>(Purpose::kActivations, layout_.host_ids);
    host_best_ = host_arena_.template take<int32_t>(Purpose::kActivations, layout_.host_best);
    host_logits_ = host_arena_.template take<float>(Purpose::kActivations, layout_.host_logits);
  }

  SessionPlan plan_sequence(int64_t n_prompt, int64_t n_new, double slots) const override {
    return plan_in_batch(request(), plan_, n_prompt, n_new, slots);
  }
  SessionPlan plan_prefix(int64_t n_tokens) const override {
    return plan_prefix_in_batch(request(), plan_, n_tokens);
  }
  SessionPlan plan_behind(const SessionPlan& prefix, int64_t n_prompt, int64_t n_new,
                          double slots) const override {
    return plan_behind_prefix(request(), plan_, prefix, n_prompt, n_new, slots);
  }
  SequenceBytes bytes_of(const SessionPlan& sequence) const override {
    return sequence_bytes(request(), sequence);
  }
  SequenceWork work_of(const SessionPlan& sequence) const override {
    const KvSettings settings = kv_settings(sequence, config_);
    const bool dense = sequence.options.attention == AttentionMode::kDense;
    const double step = prompt_flops(config_, settings, {{sequence.n_prefix + sequence.n_prompt, 1, dense}});
    if (sequence.n_prefix > 0) {
      double prompt = 0;
      for (const AppendRun& run : append_runs(sequence, settings)) {
        const bool selects = settings.select_prefill && !run.dense;
        const PromptRun whole = {sequence.n_prefix + run.first, run.n_tokens, !selects};
        prompt += run.is_segment ? prompt_flops(config_, settings, {whole}) : static_cast<double>(run.n_tokens) * step;
        if (run.is_segment && selects) prompt += own_flops(run);
      }
      return {prompt, step};
    }
    const auto runs = cut_prompt(config_, settings, sequence.n_prompt, Device::kRunFlops);
    return {prompt_flops(config_, settings, runs), step};
  }
  bool has_room(const SequenceBytes& bytes) const override {
    int64_t device = 0, host = 0, n_decoded = 0;
    for (const auto& [name, other] : sequences_) {
      device += other->device_bytes();
      host += other->host_bytes();
      n_decoded += other->plan.is_prefix ? 0 : 1;
    }
    return n_decoded < plan_.n_sequences && room_for(plan_, bytes, device, host);
  }

  int64_t add(const SessionPlan& plan, std::span<const int32_t> prompt, int64_t prefix) override {
    CHECK(static_cast<int64_t>(prompt.size()) == plan.n_prompt, "{} tokens", prompt.size());
    for (size_t i = 0; i < prompt.size(); ++i) {
      check_token(config_, prompt[i], plan.n_prefix + static_cast<int64_t>(i));
    }
    const bool behind = prefix >= 0;
    CHECK(behind == (plan.n_prefix > 0));
    if (behind) CHECK(at(prefix).plan.is_prefix && !at(prefix).pass, "sequence {}", prefix);
    auto sequence = std::make_unique<Sequence>(*this, plan, behind ? &at(prefix).store : nullptr);
    if (behind) {
      sequence->append.emplace(*this, prompt, plan, sequence->store);
      if (sequence->append->runs.front().is_segment) begin_segments(*sequence);
    } else {
      sequence->begin_prompt(*this, prompt);
    }
    const int64_t name = next_name_++;
    sequences_.emplace(name, std::move(sequence));
    return name;
  }

  PrefillProgress advance_prefill(int64_t name) override {
    Sequence& s = at(name);
    if (s.append) return advance_append(s);
    CHECK(s.pass.has_value(), "sequence {} is prefilled", name);
    s.pass->advance();
    PrefillProgress progress{s.pass->done_flops(), s.pass->total_flops(), s.pass->done()};
    if (progress.finished) {
      if (!s.plan.is_prefix) make_logits(s, s.pass->last_row());
      backend_.device.finish();
      s.end_prompt();
    } else {
      backend_.device.finish();  // what is reported is done
    }
    return progress;
  }

  void step(std::span<const Step> steps) override {
    const auto n = static_cast<int64_t>(steps.size());
    if (n == 0) return;
    CHECK(n <= plan_.n_sequences, "{} sequences", n);
    stores_.clear();
    token_ids_.clear();
    for (const Step& step : steps) {
      Sequence& s = at(step.sequence);
      CHECK(!s.pass && !s.append && !s.plan.is_prefix, "sequence {} is not to be decoded",
            step.sequence);
      s.row = std::ssize(stores_);
      s.guessed = 0;
      stores_.push_back(&s.store);
      token_ids_.push_back(step.token);
    }
    const int64_t before = n_launches();
    const int32_t* ids = upload_ids(token_ids_);
    const auto enqueue = [&] { enqueue_step(ids, n); };
    replayed_ = recorder_.step(stores_, enqueue);
    if (!replayed_) enqueue();
    backend_.device.finish();
    if (!replayed_) step_launches_ = n_launches() - before;
  }

  int64_t most_drafted(int64_t name) const override {
    return std::min(1 + plan_.largest.draft, sequences_.at(name)->store.most_to_take_back());
  }
  void step_drafted(int64_t name, std::span<const int32_t> tokens) override {
    Sequence& s = at(name);
    const auto n = static_cast<int64_t>(tokens.size());
    CHECK(!s.pass && !s.append && !s.plan.is_prefix && n <= most_drafted(name), "{} tokens of sequence {}", n, name);
    recorder_.forget();
    replayed_ = false;
    const int64_t before = n_launches();
    transformer_.embed_tokens(upload_ids(tokens), hidden_, n);
    AppendPass<Device, Host>(backend_.device, transformer_, s.store).run(hidden_, n, /*share=*/1);
    transformer_.make_logits(hidden_, n, /*alone=*/true);
    find_best(n);
    s.row = 0;
    s.guessed = n - 1;
    backend_.device.finish();
    step_launches_ = n_launches() - before;
  }
  void show(int64_t name, int64_t row) override { at(name).row = row; }
  void take_back(int64_t name, int64_t n) override {
    Sequence& s = at(name);
    CHECK(n <= std::exchange(s.guessed, 0), "{} tokens of sequence {}", n, name);
    s.store.take_back(n);
  }

  int64_t step_launches() const override { return step_launches_; }
  bool replayed() const override { return replayed_; }

  int64_t micro_batches(int64_t n) const override {
    if (plan_.micro_batches == MicroBatches::kTwo) return n > 1 ? 2 : 1;
    return bandwidths_ && splitting_gains(bytes_, *bandwidths_, n) ? 2 : 1;
  }

  int32_t sample(int64_t name, Sampler& sampler, std::span<const int32_t> history) override {
    Sampling one{name, &sampler, history};
    sample_ahead({&one, 1});
    return one.token >= 0 ? one.token : sampler.sample(logits(name), history);
  }

  void sample_ahead(std::span<Sampling> all) override {
    if constexpr (kStaged) {
      picks_.clear();
      for (const Sampling& one : all) {
        const int64_t row = at(one.sequence).row;
        picks_.push_back({transformer_.logits() + row * config_.vocab_size, host_best_ + row,
                          one.sampler, one.history});
      }
      sampler_.pick(picks_);
      for (size_t i = 0; i < picks_.size(); ++i) all[i].token = picks_[i].token;
    }
  }

  std::span<const float> logits(int64_t name) override {
    const int64_t vocab = config_.vocab_size;
    const float* row = transformer_.logits() + at(name).row * vocab;
    if (kStaged) {
      copy_block(backend_.device, row, host_logits_, vocab * static_cast<int64_t>(sizeof(float)));
      backend_.device.finish();
      row = host_logits_;
    }
    return {row, static_cast<size_t>(vocab)};
  }

  void remove(int64_t name) override {
    recorder_.forget();
    settle();
    sequences_.erase(name);
  }

  SelectionReport selection(int64_t name) const override {
    return report_of(sequences_.at(name)->store.selection());
  }
  int64_t n_tokens(int64_t name) const override { return sequences_.at(name)->store.n_tokens(); }
  const BatchPlan& plan() const override { return plan_; }
  const ModelConfig& config() const override { return config_; }
  int64_t device_bytes() const override {
    int64_t bytes = backend_.weight_bytes + sum(device_arena_.used());
    for (const auto& [name, s] : sequences_) bytes += sum(s->device.used());
    return bytes;
  }
  int64_t host_bytes() const override {
    int64_t bytes = host_weight_bytes(config_) + sum(host_arena_.used());
    for (const auto& [name, s] : sequences_) bytes += sum(s->host.used());
    return bytes;
  }
  std::string backend_description() const override { return backend_.description; }

 private:
  static constexpr bool kStaged = !Device::kHostReadable;
  // Steps that a recording must serve. By estimate: it takes as long as enqueueing a step of eight sequences,
  // 3 ms which nothing hides, and saves 0.4 ms of a step or more (journal).
  static constexpr int64_t kLeastToRecord = 8;

  using Store = KvStore<Device, Host>;

  // The prompt of a sequence behind a prefix, on its way.
  struct Append {
    Append(BackendBatch& batch, std::span<const int32_t> prompt, const SessionPlan& plan, Store& store)
        : ids(prompt.begin(), prompt.end()),
          runs(batch.append_runs(plan, store.layout().settings)),
          work(batch.work_of(plan).prompt),
          pass(batch.backend_.device, batch.transformer_, store) {}

    std::vector<int32_t> ids;
    std::vector<AppendRun> runs;
    double work = 0;  // FLOPs of all of them
    size_t next = 0;
    int64_t layer = 0;  // of a segment in hand
    AppendPass<Device, Host> pass;
    // While segments are on their way: the hidden states of one, and its ids where the device reads them.
    bf16* hidden = nullptr;
    int32_t* uploaded = nullptr;
  };

  struct Sequence {
    Sequence(BackendBatch& batch, const SessionPlan& its_plan, const Store* prefix)
        : plan(its_plan),
          bytes(batch.bytes_of(plan)),
          device(batch.backend_.device, "device", bytes.device + bytes.prefill),
          host(batch.backend_.host, "host", bytes.host + bytes.host_prefill),
          store({batch.backend_.device, batch.backend_.copy, batch.backend_.side,
                 batch.backend_.host, batch.backend_.worker},
                device, host, batch.workspace_,
                kv_layout(plan, batch.config_),
                plan.long_rope ? batch.backend_.rope : batch.backend_.short_rope,
                batch.model_->attention_scale(), plan.options.exact_exp, prefix) {}

    void begin_prompt(BackendBatch& batch, std::span<const int32_t> ids) {
      const PromptStatesLayout layout(batch.config_, plan.n_prompt, plan.states_on_host);
      prompt.on_device = device.template take<bf16>(Purpose::kActivations, layout.device);
      prompt.on_host = host.template take<bf16>(Purpose::kActivations, layout.host);
      if constexpr (kStaged) {
        prompt.uploaded = device.template take<int32_t>(Purpose::kActivations, plan.n_prompt);
        copy_block(batch.backend_.device, ids.data(), prompt.uploaded, static_cast<int64_t>(ids.size_bytes()));
        batch.backend_.device.finish();
      } else {
        prompt.ids.assign(ids.begin(), ids.end());
      }
      const PromptStates<Device> states(batch.backend_.device, batch.backend_.states, prompt.on_device,
                                        prompt.on_host, plan.n_prompt, batch.config_.hidden);
      pass.emplace(batch.transformer_, store, states, kStaged ? prompt.uploaded : prompt.ids.data(), plan.n_prompt);
    }
    void end_prompt() {
      pass.reset();
      device.give_back(prompt.on_device);
      device.give_back(prompt.uploaded);
      host.give_back(prompt.on_host);
      prompt = {};
    }

    int64_t device_bytes() const { return bytes.device + (pass || append ? bytes.prefill : 0); }
    int64_t host_bytes() const { return bytes.host + (pass ? bytes.host_prefill : 0); }

    SessionPlan plan;
    SequenceBytes bytes;
    Arena<Device> device;
    Arena<Host> host;
    Store store;
    // Until its prompt is done.
    struct Prompt {
      bf16 *on_device = nullptr, *on_host = nullptr;  // its states (PromptStatesLayout)
      int32_t* uploaded = nullptr;                    // [n_prompt], on the device
      std::vector<int32_t> ids;                       // or here
    } prompt;
    std::optional<PromptPass<Device, Host>> pass;
    std::optional<Append> append;  // or this, behind a prefix
    int64_t row = 0;  // of its logits
    int64_t guessed = 0;  // tokens of its newest step that may be taken back
  };

  PlanRequest request() const { return model_->plan_request(); }
  Sequence& at(int64_t name) { return *sequences_.at(name); }

  int64_t n_launches() const {
    if constexpr (requires { backend_.device.n_launches(); }) {
      int64_t n = 0;
      const Device* queues[] = {&backend_.device, &backend_.copy, &backend_.side};
      for (int i = 0; i < 3; ++i) {
        if (std::find(queues, queues + i, queues[i]) == queues + i) n += queues[i]->n_launches();
      }
      return n;
    }
    return 0;
  }

  // Of rows of this step, or of this run of an append.
  const int32_t* upload_ids(std::span<const int32_t> ids) {
    if (!kStaged) return ids.data();
    std::copy(ids.begin(), ids.end(), host_ids_);
    copy_block(backend_.device, host_ids_, ids_, static_cast<int64_t>(ids.size_bytes()));
    return ids_;
  }

  // Of a segment that attends all that its sequence has behind the prefix, whatever it selects of that.
  double own_flops(const AppendRun& run) const {
    const int64_t n_full = std::ranges::count(config_.sliding_window, 0);
    const double seen = static_cast<double>(run.n_tokens) * (static_cast<double>(run.first) + run.n_tokens / 2.0);
    return 4.0 * static_cast<double>(config_.q_width() * n_full) * seen;
  }

  // A segment may be stopped behind each layer.
  std::vector<AppendRun> append_runs(const SessionPlan& plan, const KvSettings& settings) const {
    if (plan.continued == 0) return cut_append(plan.options, plan.n_prompt);
    const double flops = Device::kRunFlops * static_cast<double>(config_.n_layers);
    const int64_t longest = std::min(plan.continued, segment_tokens(config_, settings, plan.n_prefix, flops));
    return cut_append(plan.options, plan.n_prompt, longest);
  }

  void begin_segments(Sequence& s) {
    s.append->hidden = s.device.template take<bf16>(Purpose::kActivations, s.plan.continued * config_.hidden);
    if (kStaged) s.append->uploaded = s.device.template take<int32_t>(Purpose::kActivations, s.plan.continued);
    s.store.begin_runs();
  }

  void end_segments(Sequence& s) {
    s.store.end_runs();
    s.device.give_back(std::exchange(s.append->hidden, nullptr));
    s.device.give_back(std::exchange(s.append->uploaded, nullptr));
  }

  PrefillProgress advance_append(Sequence& s) {
    Append& append = *s.append;
    const AppendRun& run = append.runs[append.next];
    const bool has_run = advance_run(s, run);
    if (has_run) ++append.next;
    const double layers = has_run ? 1 : static_cast<double>(append.layer) / static_cast<double>(config_.n_layers);
    const double share = (static_cast<double>(run.first) + layers * static_cast<double>(run.n_tokens)) /
                         static_cast<double>(append.ids.size());
    PrefillProgress progress{share * append.work, append.work, append.next == append.runs.size()};
    const bool ends_segments = has_run && run.is_segment && (progress.finished || !append.runs[append.next].is_segment);
    if (progress.finished) {
      const bf16* rows = run.is_segment ? append.hidden : hidden_;
      make_logits(s, rows + (run.n_tokens - 1) * config_.hidden);
    }
    backend_.device.finish();  // what is reported is done
    if (ends_segments) end_segments(s);
    if (progress.finished) s.append.reset();
    return progress;
  }

  // A segment goes through one layer, other runs through all. Whether it has been through the last.
  bool advance_run(Sequence& s, const AppendRun& run) {
    Append& append = *s.append;
    const auto ids = std::span<const int32_t>(append.ids)
                         .subspan(static_cast<size_t>(run.first), static_cast<size_t>(run.n_tokens));
    if (!run.is_segment) {
      transformer_.embed_tokens(upload_ids(ids), hidden_, run.n_tokens);
      append.pass.run(hidden_, run.n_tokens, run.share);
      return true;
    }
    if (append.layer == 0) {
      if (kStaged) copy_block(backend_.device, ids.data(), append.uploaded, static_cast<int64_t>(ids.size_bytes()));
      transformer_.embed_tokens(kStaged ? append.uploaded : ids.data(), append.hidden, run.n_tokens);
    }
    append.pass.run_segment(append.layer, append.hidden, run.n_tokens, s.plan.n_prefix + s.plan.n_prompt, run.dense);
    append.layer = (append.layer + 1) % config_.n_layers;
    return append.layer == 0;
  }

  // Of the last token of a prompt.
  void make_logits(Sequence& s, const bf16* last) {
    transformer_.make_logits(last, 1, /*alone=*/true);
    find_best(1);
    s.row = 0;
  }

  // Where fetches run beside the rest, it depends on how fast either is how a step is best taken.
  void measure_tiers() {
    const bool overlap = &backend_.device != &backend_.copy;
    if (plan_.micro_batches != MicroBatches::kAuto || !overlap) return;
    if (plan_.n_sequences < kLeastToSplit) return;
    const SessionPlan& largest = plan_.largest;
    const double imposed = largest.options.imposed_hit_rate;
    bytes_ = step_bytes(config_, largest, imposed >= 0 ? imposed : kExpectedHitRate);
    if (bytes_.link == 0) return;
    // In memory that a sequence will take.
    const SequenceBytes one =
        bytes_of(plan_sequence(largest.n_prompt, largest.context - largest.n_prompt, 0));
    bandwidths_ = measure_bandwidths(backend_.device, backend_.copy, backend_.host,
                                     std::min({kMeasuredBytes, one.device / 2, one.host}));
  }

  void enqueue_step(const int32_t* ids, int64_t n) {
    transformer_.embed_tokens(ids, hidden_, n);
    run_layers(n);
    for (Store* store : stores_) store->advance();
    transformer_.make_logits(hidden_, n, /*alone=*/true);
    find_best(n);
  }

  // Rows of a step that run through the layers together.
  struct Rows {
    int64_t first = 0, n = 0;
  };

  // Two micro-batches, A and B, follow each other half a layer apart: what A fetches arrives while
  // the device attends for B, and what B fetches while it ends the layer for A and begins the next.
  //
  //   device   begin A 0 | begin B 0 | end A 0, begin A 1 | end B 0, begin B 1 | end A 1, ..
  //   copy                 fetch A 0   fetch B 0            fetch A 1            fetch B 1
  void run_layers(int64_t n) {
    const int64_t n_parts = micro_batches(n), half = (n + n_parts - 1) / n_parts;
    const std::array<Rows, 2> parts = {Rows{0, half}, Rows{half, n - half}};
    const std::span<const Rows> in_use = std::span(parts).first(static_cast<size_t>(n_parts));
    for (const Rows& rows : in_use) begin_layer(0, rows);
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
      for (const Rows& rows : in_use) {
        end_layer(layer, rows);
        if (layer + 1 < config_.n_layers) begin_layer(layer + 1, rows);
      }
    }
  }

  bf16* hidden_of(const Rows& rows) { return hidden_ + rows.first * config_.hidden; }
  bf16* attended_of(int64_t row) { return transformer_.attended() + row * config_.q_width(); }

  Store& store_of(int64_t row) { return *stores_[static_cast<size_t>(row)]; }
  std::span<const typename Store::Attention> attentions_of(int64_t layer, const Rows& rows) {
    attentions_.clear();
    for (int64_t row = rows.first; row < rows.first + rows.n; ++row) {
      Store& store = store_of(row);
      attentions_.push_back({&store, store.queries(transformer_.step_row(layer, row)), attended_of(row)});
    }
    return attentions_;
  }

  // What one sequence fetches arrives while the others attend.
  void begin_layer(int64_t layer, const Rows& rows) {
    transformer_.step_inputs(layer, hidden_of(rows), rows.n, rows.first);
    together(backend_.device, rows.n, [&](int64_t i) {
      store_of(rows.first + i).append(layer, transformer_.step_row(layer, rows.first + i));
    });
    Store::begin_attend(layer, attentions_of(layer, rows));
  }

  void end_layer(int64_t layer, const Rows& rows) {
    Store::end_attend(layer, attentions_of(layer, rows));
    transformer_.end_layer(layer, hidden_of(rows), rows.n, RowsOf::kSteps, rows.first);
  }

  void find_best(int64_t n) {
    if constexpr (kStaged) sampler_.find_best(transformer_.logits(), n, host_best_);
  }

  // Nothing may still read or write what is given back.
  void settle() {
    for (Device* queue : {&backend_.copy, &backend_.side, &backend_.upload, &backend_.states}) {
      backend_.device.wait(queue->record());
    }
    backend_.device.finish();
  }

  std::shared_ptr<LoadedModel> model_;
  BatchPlan plan_;
  SessionBackend<Device, Host> backend_;
  const ModelConfig& config_;
  BatchLayout layout_;
  Arena<Device> device_arena_;
  Arena<Host> host_arena_;
  KvWorkspace<Device> workspace_;
  Transformer<Device> transformer_;
  StepRecorder<Device, Store> recorder_;
  [[no_unique_address]] DeviceSamplerOf<Device, Host> sampler_;
  // What the number of micro-batches is decided by, where there is something to decide.
  StepBytes bytes_;  // of one of the largest sequences
  std::optional<Bandwidths> bandwidths_;
  bf16* hidden_ = nullptr;  // [rows][hidden]: of a step, or of a run of an append
  int32_t* ids_ = nullptr;  // [rows], on the device
  int32_t *host_ids_ = nullptr, *host_best_ = nullptr;  // [rows], and of each row of logits
  float* host_logits_ = nullptr;                        // [vocab_size]
  std::map<int64_t, std::unique_ptr<Sequence>> sequences_;
  int64_t next_name_ = 0;
  int64_t step_launches_ = 0;
  bool replayed_ = false;
  std::vector<Store*> stores_;  // of the step in hand, one to a row
  std::vector<typename Store::Attention> attentions_;  // of the layer in hand
  std::vector<int32_t> token_ids_;
  std::vector<DevicePick> picks_;  // of the tokens in hand
};

}  // namespace tiercel
