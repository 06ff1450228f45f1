#include "tools/report.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "engine/base/build_info.h"
#include "engine/base/units.h"
#include "tools/session_flags.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

Json budget(int64_t tokens) { return tokens == kBudgetAll ? Json("all") : Json(tokens); }

Json selection_options_json(const SelectionOptions& s) {
  return {{"index", name_of(s.index)},
          {"chunk_size", s.chunk_size},
          {"coarse_chunk", s.coarse_chunk},
          {"coarse_share", s.coarse_share},
          {"group", name_of(s.group)},
          {"scope", name_of(s.scope)},
          {"budget", budget(s.budget)},
          {"protected", protected_tokens(s)},
          {"top_p_mass", s.top_p},
          {"reuse", s.reuse},
          {"reuse_steps", s.reuse_steps},
          {"share_layers", s.share_layers},
          {"miss_cap", s.miss_cap},
          {"estimate", s.estimate},
          {"sinks", s.sinks},
          {"recent", s.recent},
          {"outliers", s.outliers},
          {"static_budget", s.static_budget},
          {"drop_share", s.drop_share},
          {"slots", s.slots},
          {"key_codec", name_of(s.key_codec)},
          {"rank", s.rank},
          {"rank_codec", name_of(s.rank_codec)},
          {"landmark_codec", name_of(s.landmark_codec)},
          {"value_codec", name_of(s.value_codec)}};
}

Json memory_json(const RunReport& report) {
  const MemoryReport& m = report.plan.memory;
  Json json = planned_memory_json(m);
  json["device_bytes_in_use"] = m.one_memory ? Json(nullptr) : Json(report.device_bytes_in_use);
  json["peak_rss_bytes"] = report.peak_rss_bytes;
  return json;
}

// As a batch's lines have it; null where no JSON number says it, minus infinity.
Json biases_json(const std::vector<LogitBias>& biases) {
  Json json = Json::object();
  for (const LogitBias& bias : biases) json[std::to_string(bias.token)] = bias.bias;
  return json;
}

Json sampling_json(const SamplingOptions& o) {
  return {{"temperature", o.temperature},
          {"top_k", o.top_k},
          {"top_p", o.top_p},
          {"min_p", o.min_p},
          {"repeat_penalty", o.repeat_penalty},
          {"presence_penalty", o.presence_penalty},
          {"frequency_penalty", o.frequency_penalty},
          {"logit_bias", biases_json(o.logit_bias)},
          {"seed", o.seed}};
}

// By the names of the flags; null: none.
Json form_json(const AnswerForm& form) {
  switch (form.kind) {
    case AnswerForm::Kind::kFree: return nullptr;
    case AnswerForm::Kind::kJsonSchema: return {{"json_schema", form.text}};
    case AnswerForm::Kind::kRegex: return {{"regex", form.text}};
    case AnswerForm::Kind::kGrammar: return {{"grammar", form.text}};
  }
  return nullptr;
}

void row(const Console& console, const char* name, const std::string& device,
         const std::string& host) {
  console.info("  {:<14}{:>12}{:>12}", name, device, host);
}

void print_timing(const Console& console, const char* name, double seconds, int64_t n,
                  const char* unit) {
  if (n <= 0) {
    console.info("{:>17}: {:12.2f} ms", name, 1e3 * seconds);
    return;
  }
  const auto count = static_cast<double>(n);
  console.info("{:>17}: {:12.2f} ms / {:>9} {:<6} ({:10.3f} ms per token, {:>10} tok/s)", name,
               1e3 * seconds, format_count(n), unit, 1e3 * seconds / count,
               format_rate(count / seconds));
}

}  // namespace

const char* version() { return TIERCEL_VERSION; }

nlohmann::ordered_json rate_json(double count, double seconds) {
  return seconds > 0 ? Json(count / seconds) : Json(nullptr);
}

nlohmann::ordered_json attention_json(const SessionPlan& plan) {
  const SessionOptions& o = plan.options;
  const DualChunk& dual = plan.dual_chunk;
  Json json = {{"mode", name_of(o.attention)},
               {"prefill", name_of(o.prefill)},
               {"composition", composition(o)},
               {"prefill_budget", budget(o.prefill_budget)},
               {"value_home", name_of(o.value_home)},
               {"device_layers", plan.device_layers},
               {"hidden_home", plan.states_on_host ? "host" : "device"},
               {"host_attention", name_of(o.host_attention)},
               {"audit_interval", o.audit},
               {"exact_exp", o.exact_exp},
               {"context", plan.context},
               {"weights", plan.weights.empty() ? "bf16" : plan.weights},
               {"dual_chunk", dual.spans.tokens + dual.spans.local},
               {"dual_chunk_local", dual.spans.local},
               {"scale_from", dual.scaled_from},
               {"threads", o.n_threads}};
  json.update(selection_options_json(o.selection));
  return json;
}

nlohmann::ordered_json drafts_json(const SessionPlan& plan, const DraftReport& drafts) {
  return {{"mode", name_of(plan.options.draft)},
          {"most", plan.draft},
          {"steps", drafts.steps},
          {"guessed", drafts.guessed},
          {"right", drafts.right}};
}

std::string text_of(const DraftReport& drafts) {
  return fmt::format("{} of {} guessed tokens were right, {:.2f} tokens a step", format_count(drafts.right),
                     format_count(drafts.guessed),
                     1 + static_cast<double>(drafts.right) / static_cast<double>(drafts.steps));
}

nlohmann::ordered_json logprobs_json(const std::vector<int32_t>& tokens,
                                     const std::vector<TokenLogprobs>& logprobs) {
  Json json = Json::array();
  for (size_t i = 0; i < logprobs.size(); ++i) {
    Json top = Json::array();
    for (const auto& [token, logprob] : logprobs[i].top) top.push_back(Json::array({token, logprob}));
    json.push_back({{"token", tokens[i]}, {"logprob", logprobs[i].logprob}, {"top", top}});
  }
  return json;
}

nlohmann::ordered_json planned_memory_json(const MemoryReport& m) {
  return {{"device_bytes",
           {{"weights", m.device.weights},
            {"keys", m.device.keys},
            {"values", m.device.values},
            {"landmarks", m.device.landmarks},
            {"slots", m.device.slots},
            {"exact", m.device.exact},
            {"activations", m.device.activations},
            {"total", m.device.total()}}},
          {"host_bytes",
           {{"weights", m.host.weights},
            {"keys", m.host.keys},
            {"values", m.host.values},
            {"staging", m.host.staging},
            {"total", m.host.total()}}},
          {"process_bytes", m.process},
          {"planned_bytes", m.resident()}};
}

std::string to_json(const RunReport& report) {
  const Generation& g = report.generation;
  const auto n_generated = static_cast<int64_t>(g.output_tokens.size());
  const auto n_prompt = static_cast<double>(report.prompt_tokens - g.n_restored);
  Json json = {
      {"version", version()},
      {"commit", source_commit()},
      {"backend", report.backend},
      {"model", report.model},
      {"prompt_tokens", report.prompt_tokens},
      {"restored_tokens", g.n_restored},
      {"generated_tokens", n_generated},
      {"finish_reason", g.finish_reason},
      {"interrupted", g.interrupted()},
      {"output", g.output},
      {"output_tokens", g.output_tokens},
      {"load_seconds", report.load_seconds},
      {"tokenize_seconds", report.tokenize_seconds},
      {"restore_seconds", g.restore_seconds},
      {"prefill_seconds", g.prefill_seconds},
      {"save_seconds", g.save_seconds},
      {"session_file_bytes", g.saved_bytes},
      {"decode_seconds", g.decode_seconds},
      {"time_to_first_token_seconds",
       n_generated > 0 ? Json(g.time_to_first_token_seconds) : Json(nullptr)},
      // Layer by layer, an interrupted prefill has finished no token: it has no rate.
      {"prefill_tokens_per_second",
       g.prefilled ? rate_json(n_prompt, g.prefill_seconds) : Json(nullptr)},
      {"decode_tokens_per_second", rate_json(static_cast<double>(g.n_steps), g.decode_seconds)},
      {"logits_hash", g.logits_hash.empty() ? Json(nullptr) : Json(g.logits_hash)},
      {"attention", attention_json(report.plan)},
      {"sampling", sampling_json(report.sampling)},
      {"form", form_json(report.form)},
      {"memory", memory_json(report)},
      {"selection",
       {{"steps", report.selection.steps},
        {"selected_chunks", report.selection.selected_chunks},
        {"hit_chunks", report.selection.hit_chunks},
        {"hit_rate", report.selection.selected_chunks > 0 ? Json(report.selection.hit_rate())
                                                           : Json(nullptr)},
        {"reuse_rate", report.selection.reuse_rate()},
        {"fetched_bytes", report.selection.fetched_bytes},
        {"host_layers", report.selection.host_layers},
        {"tried_fetch_seconds", report.selection.tried_fetch_seconds},
        {"tried_host_seconds", report.selection.tried_host_seconds}}},
      {"drafts", drafts_json(report.plan, report.drafts)},
      {"audit",
       {{"steps", report.audit.steps},
        {"mass_mean", report.audit.steps > 0 ? Json(report.audit.mass_mean) : Json(nullptr)},
        {"mass_p05", report.audit.steps > 0 ? Json(report.audit.mass_p05) : Json(nullptr)}}},
      {"residual_energy", report.residual_energy},
      {"key_coding_seconds", report.key_coding_seconds > 0 ? Json(report.key_coding_seconds) : Json(nullptr)},
      {"notes", report.plan.notes}};
  if (!g.logprobs.empty()) json["logprobs"] = logprobs_json(g.output_tokens, g.logprobs);
  if (!g.error.empty()) json["error"] = g.error;
  // A path or a message may hold bytes that are not UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_plan(const SessionPlan& plan, int64_t n_prompt, const Console& console) {
  const SessionOptions& o = plan.options;
  console.info("prompt: {} tokens; context: {} tokens", format_count(n_prompt),
               format_count(plan.context));
  console.info("attention: {}, prefill {}", name_of(o.attention), name_of(o.prefill));
  if (plan.context > plan.dual_chunk.plain_tokens()) console.info("reach: {}", flags_of(plan.dual_chunk));
  if (o.attention != AttentionMode::kDense) {
    console.info("selection: {}", composition(o));
    if (plan.device_layers > 0 && plan.memory.host.values == 0) {
      console.info("home: all layers on the device");
    } else if (plan.device_layers > 0) {
      console.info("home: {} layers on the device, the others on the host", plan.device_layers);
    }
  }
  if (!plan.weights.empty()) console.info("weights: {}", plan.weights);
  if (plan.memory.host.weights > 0) {
    console.info("weights: {} stay in host memory; steps read them over the link, of experts those that are chosen",
                 format_bytes(plan.memory.host.weights));
  }
  if (plan.states_on_host) console.info("hidden states of the prompt: in host memory, a run at a time on the device");
  const MemoryReport& m = plan.memory;
  row(console, "memory plan", "device", "host");
  row(console, "weights", format_bytes(m.device.weights),
      m.host.weights > 0 ? format_bytes(m.host.weights) : "");
  row(console, "keys", format_bytes(m.device.keys), format_bytes(m.host.keys));
  row(console, "values", m.device.values > 0 ? format_bytes(m.device.values) : "",
      format_bytes(m.host.values));
  row(console, "landmarks", format_bytes(m.device.landmarks), "");
  row(console, "slots", format_bytes(m.device.slots), "");
  row(console, "exact", format_bytes(m.device.exact), "");
  row(console, "activations", format_bytes(m.device.activations), "");
  if (m.host.staging > 0) row(console, "staging", "", format_bytes(m.host.staging));
  row(console, "process", "", format_bytes(m.process));
  row(console, "total", format_bytes(m.device.total()), format_bytes(m.host.total() + m.process));
  for (const std::string& note : plan.notes) console.warning(note);
}

void print_summary(const RunReport& report, const Console& console) {
  const Generation& g = report.generation;
  const auto n_generated = static_cast<int64_t>(g.output_tokens.size());
  if (!console.quiet() || ::isatty(STDOUT_FILENO) == 1)
    console.line("");  // ends the text's last line
  print_timing(console, "load time", report.load_seconds, 0, "");
  if (g.n_restored > 0) {
    print_timing(console, "restore time", g.restore_seconds, g.n_restored, "tokens");
  }
  print_timing(console, "prompt eval time", g.prefill_seconds,
               g.prefilled ? report.prompt_tokens - g.n_restored : 0, "tokens");
  if (g.save_seconds > 0) {
    print_timing(console, "save time", g.save_seconds, 0, "");
    console.info("{:>17}: {}", "session file", format_bytes(g.saved_bytes));
  }
  print_timing(console, "eval time", g.decode_seconds, g.n_steps, "runs");
  print_timing(console, "total time",
               report.load_seconds + report.tokenize_seconds + g.restore_seconds +
                   g.prefill_seconds + g.save_seconds + g.decode_seconds,
               0, "");
  console.info("{:>17}: {} ({} generated)", "finish", g.finish_reason, format_count(n_generated));
  console.info("{:>17}: {} planned, {} peak resident", "memory",
               format_bytes(report.plan.memory.resident()), format_bytes(report.peak_rss_bytes));
  if (report.device_bytes_in_use > 0) {
    console.info("{:>17}: {} planned, {} in use", "device memory",
                 format_bytes(report.plan.memory.device.total()),
                 format_bytes(report.device_bytes_in_use));
  }
  if (report.selection.steps > 0) {
    const std::string steps = fmt::format("{} layer steps", format_count(report.selection.steps));
    if (report.selection.selected_chunks > 0) {
      console.info("{:>17}: {}, hit rate {:.1f} %, {} fetched", "selection", steps,
                   100 * report.selection.hit_rate(), format_bytes(report.selection.fetched_bytes));
    } else {
      console.info("{:>17}: {}, nothing to fetch", "selection", steps);
    }
    if (report.selection.host_layers > 0) {
      console.info("{:>17}: attends {} layers", "host", report.selection.host_layers);
    }
    if (report.selection.tried_host_seconds > 0) {
      console.info("{:>17}: attention of a step {:.3f} ms fetched, {:.3f} ms on the host", "tried",
                   1e3 * report.selection.tried_fetch_seconds, 1e3 * report.selection.tried_host_seconds);
    }
    if (report.selection.decisions > 0) {
      console.info("{:>17}: {:.1f} % of the lists stayed", "reuse",
                   100 * report.selection.reuse_rate());
    }
  }
  if (report.drafts.steps > 0) console.info("{:>17}: {}", "drafts", text_of(report.drafts));
  if (report.audit.steps > 0) {
    console.info("{:>17}: {} steps, attention mass covered: mean {:.4f}, 5th percentile {:.4f}",
                 "audit", format_count(report.audit.steps), report.audit.mass_mean,
                 report.audit.mass_p05);
  }
  if (report.key_coding_seconds > 0 && g.prefill_seconds > 0) {
    console.info("{:>17}: {:.3f} s{}, {:.1f} % of the prefill's time", "keys coded",
                 report.key_coding_seconds, report.plan.memory.one_memory ? "" : " beside it",
                 100 * report.key_coding_seconds / g.prefill_seconds);
  }
  const std::vector<double>& energy = report.residual_energy;
  if (!energy.empty()) {
    const double mean = std::accumulate(energy.begin(), energy.end(), 0.0) / energy.size();
    console.info(
        "{:>17}: mean {:.2e}, worst layer {:.2e} (share of the keys' variance that the rank "
        "leaves out)",
        "residual energy", mean, *std::max_element(energy.begin(), energy.end()));
  }
  if (!g.logits_hash.empty()) console.info("{:>17}: {}", "logits hash", g.logits_hash);
}

}  // namespace tiercel
