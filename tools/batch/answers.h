// What tiercel batch answers: JSON lines, each written when its request ends, so that a job that is
// stopped has lost nothing, and another one goes on where it stood.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/scheduler.h"
#include "tools/batch/requests.h"

namespace tiercel {

struct BatchAnswer {
  std::string text = {};                // valid UTF-8
  const char* finish_reason = "error";  // AnswerText's; or "error": see report.error
  RequestReport report = {};
  std::vector<ToolCall> calls = {};
  std::string thoughts = {};
};

// One line, with its line break. answers: all that were asked for, or one that failed. settings: of the job, as far as an
// answer depends on them.
std::string to_json_line(const BatchRequest& request, std::span<const BatchAnswer> answers,
                         const std::string& settings, const Tokenizer& tokenizer);

class AnswerFile {
 public:
  // "-": stdout. A file that has something in it is an Error(kUsage), unless `resume` and it is
  // such a file: then a line that was cut off is removed from its end. Only one process can have a
  // file. Throws Error(kRuntime) where it cannot be opened.
  AnswerFile(std::string path, bool resume);
  ~AnswerFile();
  AnswerFile(const AnswerFile&) = delete;
  AnswerFile& operator=(const AnswerFile&) = delete;

  // Those of `requests` that the file has no answer to yet; errors are none. Throws Error(kUsage)
  // naming the line of an answer to another request.
  std::vector<BatchRequest> unanswered(std::vector<BatchRequest> requests) const;
  // Throws Error(kUsage) where what is there was answered with others.
  void check_settings(const std::string& settings) const;
  // What is left then: the errors that were written instead of answers to those of unanswered() go, so
  // that no line has two. Throws Error(kRuntime); the file is then as it was.
  void drop_errors();
  // A whole line or, where there is no room on the disk, nothing of it: then Error(kRuntime).
  // Throws ReaderGone where stdout is closed.
  void add(std::string_view line);
  // Everything is on the disk. Throws Error(kRuntime).
  void sync() const;

 private:
  [[noreturn]] void refuse(const char* doing, int error) const;
  void read_answers();
  bool is_still_there(const struct stat& ours) const;  // under its name
  void require_named(const struct stat& ours) const;

  struct Answered {
    int64_t line_here = 0;  // of this file, from 1
    int64_t line = 0;
    std::string request_hash, settings;
  };
  std::string path_;
  int fd_ = -1;
  bool regular_ = false;
  std::vector<Answered> answered_;
  std::optional<std::string> without_errors_;  // the other lines, where some are errors
};

}  // namespace tiercel
