#include "tools/batch/report.h"

#include <nlohmann/json.hpp>

#include "cpu/topology.h"
#include "engine/base/build_info.h"
#include "engine/base/units.h"
#include "tools/report.h"

namespace tiercel {

void BatchReport::count(std::span<const BatchAnswer> answers) {
  const RequestReport& first = answers.front().report;
  if (first.state == RequestState::kFailed) {
    ++n_failed;
    failures.insert(first.error_kind);
  } else {
    ++n_answered;
  }
  for (const BatchAnswer& answer : answers) {
    const RequestReport& r = answer.report;
    n_generated += std::ssize(r.tokens);
    selection.selected_chunks += r.selection.selected_chunks;
    selection.hit_chunks += r.selection.hit_chunks;
    selection.fetched_bytes += r.selection.fetched_bytes;
  }
}

int BatchReport::exit_code() const {
  if (interrupted) return static_cast<int>(ErrorKind::kInterrupted);
  if (n_failed == 0) return 0;
  const bool all_alike = failures.size() == 1 && n_failed == n_requests;
  return static_cast<int>(all_alike ? *failures.begin() : ErrorKind::kRuntime);
}

std::string to_json(const BatchReport& r) {
  using Json = nlohmann::ordered_json;
  const Json hit_rate = r.selection.selected_chunks > 0 ? Json(r.selection.hit_rate()) : Json();
  const Json json = {
      {"version", version()},
      {"commit", source_commit()},
      {"backend", r.backend},
      {"model", r.model},
      {"requests", r.n_requests},
      {"answered", r.n_answered},
      {"failed", r.n_failed},
      {"interrupted", r.interrupted},
      {"seconds", r.seconds},
      {"prompt_tokens", r.totals.prompt_tokens},
      {"prefill_seconds", r.totals.prefill_seconds},
      {"prefill_tokens_per_second",
       rate_json(static_cast<double>(r.totals.prompt_tokens), r.totals.prefill_seconds)},
      {"generated_tokens", r.n_generated},
      {"steps", r.totals.steps},
      {"step_tokens", r.totals.step_tokens},
      {"step_seconds", r.totals.step_seconds},
      {"decode_tokens_per_second",
       rate_json(static_cast<double>(r.totals.step_tokens), r.totals.step_seconds)},
      {"most_decoding", r.totals.most_decoding},
      {"longest_gap_seconds", r.totals.longest_gap},
      {"drafts", drafts_json(r.largest, r.totals.drafts)},
      {"attention", attention_json(r.largest)},
      {"selection", {{"hit_rate", hit_rate}, {"fetched_bytes", r.selection.fetched_bytes}}},
      {"memory",
       {{"device_bytes", r.device_bytes},
        {"host_bytes", r.host_bytes},
        {"peak_rss_bytes", cpu::peak_rss_bytes()}}}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_summary(const BatchReport& r, const Console& console) {
  const auto rate = [](int64_t n, double seconds) {
    return format_rate(seconds > 0 ? static_cast<double>(n) / seconds : 0);
  };
  const SchedulerReport& t = r.totals;
  console.info("");
  console.info("        answered: {} of {} lines in {}", format_count(r.n_answered),
               format_count(r.n_requests), format_duration(r.seconds));
  console.info("         prompts: {} tokens in {:.2f} s ({} tok/s)", format_count(t.prompt_tokens),
               t.prefill_seconds, rate(t.prompt_tokens, t.prefill_seconds));
  console.info(
      "         answers: {} tokens, {} of them in {:.2f} s of {} steps ({} tok/s), up to {} at a "
      "time",
      format_count(r.n_generated), format_count(t.step_tokens), t.step_seconds,
      format_count(t.steps), rate(t.step_tokens, t.step_seconds), t.most_decoding);
  if (t.drafts.steps > 0) console.info("          drafts: {}", text_of(t.drafts));
  if (r.selection.selected_chunks > 0) {
    console.info("       selection: {:.1f} % hits, {} fetched", 100 * r.selection.hit_rate(),
                 format_bytes(r.selection.fetched_bytes));
  }
  console.info("          memory: {} of the device, {} of the host taken at most",
               format_bytes(r.device_bytes), format_bytes(r.host_bytes));
}

}  // namespace tiercel
