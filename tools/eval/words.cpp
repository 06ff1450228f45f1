// Words to count.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "tools/eval/generators.h"
#include "tools/unique_names.h"

namespace tiercel {
namespace {

constexpr size_t kCommon = 10;                 // words of kCommonWords that are asked for
constexpr size_t kFrequent = 3;                // of kFrequentWords
constexpr double kZeta2 = 1.6449340668482264;  // sum of 1 / k^2

void shuffle(std::vector<std::string>& words, RandomBits& random) {
  for (size_t i = words.size(); i > 1; --i) std::swap(words[i - 1], words[random.below(i)]);
}

// Names made when they are first needed, so that more of them begin with the same ones.
class WordList {
 public:
  WordList(uint64_t seed, bool coded) : random_(seed), names_(random_), coded_(coded) {}
  const std::string& operator[](size_t i) {
    while (words_.size() <= i) {
      words_.push_back(coded_ ? names_.letters(6, "abcdefghijklmnopqrstuvwxyz")
                              : names_.compound());
    }
    return words_[i];
  }

 private:
  RandomBits random_;
  UniqueNames names_;
  bool coded_;
  std::vector<std::string> words_;
};

// "1. amber-fern 2. ..." of ten words `often` times and n others a tenth as often.
std::string numbered_list(WordList& words, int64_t n, int64_t often, uint64_t seed) {
  std::vector<std::string> list;
  const int64_t seldom = std::max<int64_t>(often / 10, 1);
  for (size_t i = 0; i < kCommon + static_cast<size_t>(n); ++i) {
    list.insert(list.end(), static_cast<size_t>(i < kCommon ? often : seldom), words[i]);
  }
  RandomBits random(seed);
  shuffle(list, random);
  std::string text;
  for (size_t i = 0; i < list.size(); ++i) text += fmt::format("{}. {}\n", i + 1, list[i]);
  return text;
}

EvalSample common_words(const SampleRequest& request) {
  WordList words(request.seed, false);
  EvalQuestion question{
      fmt::format(
          "Question: Which {0} words occur most often in the list above?\nAnswer: The {0} words "
          "that occur most often are",
          kCommon),
      {},
      Scoring::kShare,
      {}};
  for (size_t i = 0; i < kCommon; ++i) question.expected.push_back(words[i]);
  const std::string introduction =
      "Below is a numbered list of words. Some of them occur more often than the others. Remember "
      "those.\n\n";
  const int64_t room = room_for_body(request, introduction, {question});
  // 30 times as in the paper, or less where that would fill more than half of a short prompt.
  int64_t often = 30;
  const auto tokens_of = [&](int64_t n) {
    return request.count(numbered_list(words, n, often, request.seed));
  };
  while (often > 4 && tokens_of(0) > room / 2) often -= 2;
  const int64_t n = fit(room, 1, tokens_of);
  EvalSample sample;
  sample.context = introduction + numbered_list(words, n, often, request.seed);
  sample.questions = {question};
  sample.max_new = 160;
  return sample;
}

// n words, the word of rank k about n / (zeta(2) k^2) times. The first rank is dots: noise.
std::string coded_text(WordList& words, int64_t n, uint64_t seed) {
  std::vector<std::string> list;
  for (size_t rank = 1;; ++rank) {
    const double share = 1 / (kZeta2 * static_cast<double>(rank) * static_cast<double>(rank));
    const auto times = static_cast<size_t>(share * static_cast<double>(n));
    if (times == 0) break;
    list.insert(list.end(), times, rank == 1 ? "...." : words[rank - 2]);
  }
  RandomBits random(seed);
  shuffle(list, random);
  return fmt::format("{}\n\n", fmt::join(list, " "));
}

EvalSample frequent_words(const SampleRequest& request) {
  WordList words(request.seed, true);
  const EvalQuestion question{
      "Question: Leaving the dots aside, which three coded words occur most often in the text "
      "above?\nAnswer: The three words that occur most often are",
      {words[0], words[1], words[2]},
      Scoring::kShare,
      {}};
  static_assert(kFrequent == 3);
  const std::string introduction =
      "The text below is made of coded words. Keep track of how often each of them occurs.\n\n";
  const int64_t room = room_for_body(request, introduction, {question});
  // From 40 on the ranks that are asked for differ in how often they occur.
  const int64_t n = fit(room, 40, [&](int64_t wanted) {
    return request.count(coded_text(words, wanted, request.seed));
  });
  EvalSample sample;
  sample.context = introduction + coded_text(words, n, request.seed);
  sample.questions = {question};
  sample.max_new = 50;
  return sample;
}

}  // namespace

EvalSample make_words(const SampleRequest& request) {
  return request.task == EvalTask::kCommonWords ? common_words(request) : frequent_words(request);
}

}  // namespace tiercel
