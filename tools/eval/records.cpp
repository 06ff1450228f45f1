// A context of nothing but needles or records.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "tools/eval/generators.h"
#include "tools/haystack.h"
#include "tools/unique_names.h"

namespace tiercel {
namespace {

struct Record {
  std::string line;  // with its newline
  EvalQuestion question;
};

class RecordSource {
 public:
  explicit RecordSource(const SampleRequest& request)
      : request_(request), random_(request.seed), names_(random_) {}

  Record next() { return request_.style == EvalStyle::kRecall ? recall() : plain(); }

  std::string introduction() const {
    if (request_.style == EvalStyle::kRecall) return "";
    if (request_.task == EvalTask::kRecords) {
      return "The JSON object below maps keys to values. At its end the value of a key will be "
             "asked "
             "for.\n\n{\n";
    }
    return "The text below lists special magic values. Remember them: at its end one of them will "
           "be "
           "asked for.\n\n";
  }
  std::string end() const {
    return request_.style == EvalStyle::kPlain && request_.task == EvalTask::kRecords ? "}\n\n"
                                                                                      : "";
  }

 private:
  Record recall() {
    Fact fact{.form = request_.task == EvalTask::kMultiKey2   ? FactForm::kSpecial
                      : request_.task == EvalTask::kMultiKey3 ? FactForm::kPassKey
                                                              : FactForm::kLine,
              .key = names_.key(),
              .value = names_.value(request_.task == EvalTask::kMultiKey3 ? 9 : 6)};
    return {fact.sentence() + "\n", {fact.question(), {fact.value}, Scoring::kFirstLine, {}}};
  }

  Record plain() {
    const bool numbers = request_.task == EvalTask::kMultiKey2;
    const std::string key = numbers ? names_.key() : names_.uuid();
    const std::string value = numbers ? names_.value(7) : names_.uuid();
    if (request_.task == EvalTask::kRecords) {
      return {fmt::format("\"{}\": \"{}\",\n", key, value),
              {fmt::format("In the JSON object above, the value of the key \"{}\" is \"", key),
               {value},
               Scoring::kShare,
               {}}};
    }
    const char* what = numbers ? "number" : "uuid";
    return {fmt::format("One of the special magic {}s for {} is: {}.\n", what, key, value),
            {fmt::format("What is the special magic {0} for {1}? The special magic {0} for {1} is",
                         what, key),
             {value},
             Scoring::kShare,
             {}}};
  }

  const SampleRequest& request_;
  RandomBits random_;
  UniqueNames names_;
};

}  // namespace

EvalSample make_records(const SampleRequest& request) {
  RecordSource source(request);
  const std::string introduction = source.introduction();
  std::vector<Record> records = {source.next()};
  const int64_t room = room_for_body(request, introduction + source.end(), {records[0].question});
  // Lines end tokens, so their counts add up to within a few; the count of all of it decides.
  std::vector<int64_t> tokens_before = {0};
  const auto body = [&](int64_t n) {
    std::string text;
    for (int64_t i = 0; i < n; ++i) text += records[static_cast<size_t>(i)].line;
    return text;
  };
  while (true) {
    tokens_before.push_back(tokens_before.back() + request.count(records.back().line));
    // A few more than will do, for tokenizers that merge lines.
    if (tokens_before.back() > room + room / 50 + 64) break;
    records.push_back(source.next());
  }
  // tokens_before[n]: of the first n records.
  const auto past = std::upper_bound(tokens_before.begin(), tokens_before.end(), room);
  int64_t n = std::max<int64_t>(past - tokens_before.begin() - 1, 1);
  // Questions differ in length: the first one stands for all but the last few tokens.
  constexpr int64_t kSlack = 16;
  for (int64_t over; n > 1 && (over = request.count(body(n)) + kSlack - room) > 0;) {
    const int64_t per_record = std::max<int64_t>(tokens_before[static_cast<size_t>(n)] / n, 1);
    n = std::max<int64_t>(n - (over + per_record - 1) / per_record, 1);
  }

  EvalSample sample;
  sample.context = introduction + body(n) + source.end();
  for (const double depth : request.depths) {
    const auto at = static_cast<size_t>(std::llround(depth * static_cast<double>(n - 1)));
    sample.questions.push_back(records[at].question);
    sample.questions.back().depth = depth;
  }
  sample.max_new = request.style == EvalStyle::kRecall ? 16 : 64;
  return sample;
}

}  // namespace tiercel
