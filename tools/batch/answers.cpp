#include "tools/batch/answers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/unfinished_files.h"
#include "engine/json.h"
#include "tools/batch/openai.h"
#include "tools/console.h"
#include "tools/output_file.h"
#include "tools/prompt.h"
#include "tools/report.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

std::string hash_text(const BatchRequest& request) { return fmt::format("{:016x}", request.hash); }

Json to_plain_answer(const BatchRequest& request, const BatchAnswer& answer) {
  const RequestReport& r = answer.report;
  Json json;
  if (!request.id.empty()) json["id"] = Json::parse(request.id);
  if (r.state == RequestState::kFailed) json["error"] = r.error;
  json["text"] = answer.text;
  json["finish_reason"] = answer.finish_reason;
  json["prompt_tokens"] = r.prompt_tokens;
  json["shared_prompt_tokens"] = r.prefix_tokens;
  json["generated_tokens"] = r.tokens.size();
  json["output_tokens"] = r.tokens;
  if (request.n_logprobs >= 0) json["logprobs"] = logprobs_json(r.tokens, r.logprobs);
  json["seed"] = request.sampling.temperature > 0 ? Json(request.sampling.seed) : Json(nullptr);
  json["queued_seconds"] = r.queued_seconds;
  json["time_to_first_token_seconds"] =
      r.first_token_seconds > 0 ? Json(r.first_token_seconds) : Json(nullptr);
  json["decode_seconds"] = r.decode_seconds;
  json["hit_rate"] = r.selection.selected_chunks > 0 ? Json(r.selection.hit_rate()) : Json(nullptr);
  return json;
}

}  // namespace

std::string to_json_line(const BatchRequest& request, std::span<const BatchAnswer> answers,
                         const std::string& settings, const Tokenizer& tokenizer) {
  Json json = {{"line", request.line}};
  if (request.form != RequestForm::kPlain) {
    json.update(to_openai_answer(request, answers, tokenizer));
  } else {
    json.update(to_plain_answer(request, answers.front()));
  }
  json["request_hash"] = hash_text(request);
  json["settings"] = settings;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

AnswerFile::AnswerFile(std::string path, bool resume) : path_(std::move(path)) {
  if (path_.empty()) fail(ErrorKind::kUsage, "--output: expected a file or -, found nothing");
  if (path_ == "-") {
    if (resume) fail(ErrorKind::kUsage, "--resume: expected -o FILE beside it, found none");
    return;
  }
  // For writing only: whoever can read a pipe too is never told that its reader has gone.
  fd_ = open_output(path_, O_WRONLY | O_CREAT | O_APPEND);
  if (fd_ < 0) refuse("open", errno);
  struct stat info {};
  if (::fstat(fd_, &info) != 0) refuse("open", errno);
  regular_ = S_ISREG(info.st_mode);
  if (!regular_) {
    if (resume) fail(ErrorKind::kUsage, "--resume: {} is no regular file", path_);
    return;
  }
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      fail("--output: {}: another process is writing its answers there", path_);
    }
    if (errno != ENOTSUP && errno != ENOLCK && errno != EINVAL) refuse("lock", errno);
  }
  if (::fstat(fd_, &info) != 0) refuse("open", errno);  // whoever had the lock may have written
  if (!is_still_there(info)) fail("--output: {}: another process has just replaced it; try again", path_);
  if (info.st_size == 0) return;
  if (!resume) {
    fail(ErrorKind::kUsage,
         "--output: {} has {} bytes already; add --resume to go on where they end, or remove it",
         path_, info.st_size);
  }
  read_answers();
}

AnswerFile::~AnswerFile() {
  if (fd_ >= 0) ::close(fd_);
}

void AnswerFile::refuse(const char* doing, int error) const {
  fail("--output: cannot {} {}: {}", doing, path_, std::strerror(error));
}

void AnswerFile::read_answers() {
  const std::string text = read_input(path_, "--output");
  const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  bool has_errors = false;
  std::string answers;
  int64_t number = 0;
  for (size_t begin = 0; begin < whole;) {
    const size_t end = text.find('\n', begin);
    const std::string place = fmt::format("{}:{}", path_, ++number);
    const nlohmann::json json = parse_json(std::string_view(text).substr(begin, end - begin), place,
                                           {.max_bytes = size_t{1} << 30});
    const JsonNode root(json, place);
    const std::string_view line = std::string_view(text).substr(begin, end + 1 - begin);
    begin = end + 1;
    if (root.find("error")) {
      has_errors = true;
      continue;
    }
    answers += line;
    answered_.push_back({number, root.at("line").integer(1, INT64_MAX),
                         root.at("request_hash").text(), root.at("settings").text()});
  }
  // What is no file of answers is not touched.
  constexpr std::string_view kBegin = "{\"line\":";
  const std::string_view rest = std::string_view(text).substr(whole);
  if (!rest.starts_with(kBegin.substr(0, rest.size()))) {
    fail(ErrorKind::kUsage, "{}:{}: expected an answer, found something else", path_, number + 1);
  }
  if (!rest.empty() && ::ftruncate(fd_, static_cast<off_t>(whole)) != 0) {
    refuse("remove a cut line from", errno);
  }
  if (has_errors) without_errors_ = std::move(answers);
}

void AnswerFile::drop_errors() {
  if (!without_errors_) return;
  const std::string path = behind_links(path_);
  const std::string temporary = unused_name_beside(path);
  const UnfinishedFile unfinished(temporary);  // before it is there: nobody else has this name
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) refuse("replace", errno);
  take_permissions(fd, path);
  int error = ::flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK ? 0 : errno;
  if (error == 0) error = write_all(fd, *without_errors_);
  if (error == 0 && ::fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) error = errno;
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    ::close(fd);
    ::unlink(temporary.c_str());
    refuse("replace", error);
  }
  ::close(fd_);
  fd_ = fd;
  without_errors_.reset();
}

std::vector<BatchRequest> AnswerFile::unanswered(std::vector<BatchRequest> requests) const {
  std::map<int64_t, const Answered*> by_line;
  for (const Answered& answered : answered_) by_line[answered.line] = &answered;
  std::erase_if(requests, [&](const BatchRequest& request) {
    const auto found = by_line.find(request.line);
    if (found == by_line.end()) return false;
    if (found->second->request_hash != hash_text(request)) {
      fail(ErrorKind::kUsage,
           "{}:{}: expected an answer to line {} of the requests, found one to another prompt, or to "
           "other options (-n, --temp and so on); these are not the answers to go on with",
           path_, found->second->line_here, request.line);
    }
    by_line.erase(found);
    return true;
  });
  if (!by_line.empty()) {
    const Answered& other = *by_line.begin()->second;
    fail(ErrorKind::kUsage,
         "{}:{}: expected an answer to one of the requests, found one to line {}, which is none; "
         "these are not the answers to go on with",
         path_, other.line_here, other.line);
  }
  return requests;
}

void AnswerFile::check_settings(const std::string& settings) const {
  for (const Answered& answered : answered_) {
    if (answered.settings == settings) continue;
    fail(ErrorKind::kUsage,
         "{}:{}: answered with another model, or other settings of attention, selection or codecs; "
         "repeat them, or begin another file",
         path_, answered.line_here);
  }
}

void AnswerFile::add(std::string_view line) {
  if (fd_ < 0) return print_result(line);
  struct stat before {};
  if (regular_ && ::fstat(fd_, &before) != 0) refuse("write", errno);
  if (regular_) require_named(before);
  for (std::string_view left = line; !left.empty();) {
    const ssize_t n = ::write(fd_, left.data(), left.size());
    if (n < 0 && errno == EINTR && !stop_requested()) continue;
    if (n < 0) {
      const int error = errno;
      // A line that is not whole is taken back; where even that fails, --resume does it.
      if (regular_ && left.size() < line.size()) {
        [[maybe_unused]] const int ignored = ::ftruncate(fd_, before.st_size);
      }
      refuse("write", error);
    }
    left.remove_prefix(static_cast<size_t>(n));
  }
}

bool AnswerFile::is_still_there(const struct stat& ours) const {
  struct stat named {};
  return ::stat(path_.c_str(), &named) == 0 && named.st_ino == ours.st_ino && named.st_dev == ours.st_dev;
}

void AnswerFile::require_named(const struct stat& ours) const {
  if (ours.st_nlink > 0) return;
  fail("--output: {}: it was removed or replaced while answers were written to it, and they are gone", path_);
}

void AnswerFile::sync() const {
  struct stat info {};
  if (regular_ && ::fstat(fd_, &info) == 0) require_named(info);
  if (fd_ >= 0 && regular_ && ::fsync(fd_) != 0 && errno != EINVAL && errno != ENOTSUP) {
    refuse("write", errno);
  }
}

}  // namespace tiercel
