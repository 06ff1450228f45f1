// What tiercel batch says about a job: the closing block, and the JSON report.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>

#include "engine/base/check.h"
#include "engine/scheduler.h"
#include "tools/batch/answers.h"
#include "tools/console.h"

namespace tiercel {

struct BatchReport {
  std::string model, backend;
  SessionPlan largest;  // of the longest prompt
  int64_t n_requests = 0, n_answered = 0, n_failed = 0;
  std::set<ErrorKind> failures;
  bool interrupted = false;
  double seconds = 0;
  int64_t n_generated = 0;  // tokens
  SchedulerReport totals;
  SelectionReport selection;
  int64_t device_bytes = 0, host_bytes = 0;  // taken at most

  // One more request has ended, with all of its answers or with one that failed.
  void count(std::span<const BatchAnswer> answers);
  // 0; 130; what all requests failed of; or 1.
  int exit_code() const;
};

// One JSON object, with a final newline. Numbers that do not exist (a rate over no time) are null.
std::string to_json(const BatchReport& report);

void print_summary(const BatchReport& report, const Console& console);

}  // namespace tiercel
