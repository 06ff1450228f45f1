#include "engine/text/thoughts.h"

#include <gtest/gtest.h>

#include <string>

namespace tiercel::test {
namespace {

struct Cut {
  std::string thoughts, rest;
  friend bool operator==(const Cut&, const Cut&) = default;
};

// In pieces of every size: what is said only grows, and is in the end what it is of the whole answer.
Cut cut(const std::string& answer, bool begun) {
  const ThoughtReader::Parts whole = ThoughtReader(begun).read(answer, true);
  const Cut expected = {std::string(whole.thoughts), std::string(whole.rest)};
  for (size_t stride = 1; stride <= answer.size(); ++stride) {
    ThoughtReader reader(begun);
    Cut said;
    for (size_t n = 0; n < answer.size() + stride; n += stride) {
      const std::string so_far = answer.substr(0, n);
      const ThoughtReader::Parts parts = reader.read(so_far, false);
      EXPECT_TRUE(parts.thoughts.starts_with(said.thoughts)) << so_far;
      EXPECT_TRUE(parts.rest.starts_with(said.rest)) << so_far;
      said = {std::string(parts.thoughts), std::string(parts.rest)};
    }
    EXPECT_TRUE(expected.thoughts.starts_with(said.thoughts)) << answer;
    EXPECT_TRUE(expected.rest.starts_with(said.rest)) << answer;
  }
  return expected;
}

TEST(Thoughts, AreCutFromWhatIsSaid) {
  EXPECT_EQ(cut("<think>\nIs it <b>? </th no.\n</think>\n\nYes, </think> it is.\n", false),
            (Cut{"Is it <b>? </th no.", "Yes, </think> it is.\n"}));
  EXPECT_EQ(cut(" \n<think></think>a", false), (Cut{"", "a"}));
  EXPECT_EQ(cut("\nhm </think>a", true), (Cut{"hm", "a"}));
  EXPECT_EQ(cut("<think>hm</think> a", true), (Cut{"hm", "a"}));  // said once more than the template did
  // None, whatever comes later.
  EXPECT_EQ(cut("  It is. <think>x</think>", false), (Cut{"", "  It is. <think>x</think>"}));
  EXPECT_EQ(cut("<thin", false), (Cut{"", "<thin"}));
  EXPECT_EQ(cut("", false), Cut());
  EXPECT_EQ(cut("  ", false), (Cut{"", "  "}));
  // An answer that was cut off while it thought.
  EXPECT_EQ(cut("<think>so it \n", false), (Cut{"so it", ""}));
  EXPECT_EQ(cut("so it </thi", true), (Cut{"so it </thi", ""}));
  EXPECT_EQ(cut("", true), Cut());
  EXPECT_EQ(cut("\n\n", true), Cut());
}

TEST(Thoughts, AreSeenAtTheEndOfPrompts) {
  const Tokenizer tokenizer =
      Tokenizer::load(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/tokenizer/qwen2/tokenizer.json");
  const auto at_end = [&](const std::string& prompt) { return thoughts_at_end(tokenizer, tokenizer.encode(prompt)); };
  EXPECT_EQ(at_end("<|im_start|>assistant\n<think>\n"), PromptThoughts::kBegun);
  EXPECT_EQ(at_end("assistant\n<think>"), PromptThoughts::kBegun);
  EXPECT_EQ(at_end("<|im_start|>assistant\n<think>\n\n</think>\n\n"), PromptThoughts::kEnded);
  EXPECT_EQ(at_end("<think> assistant"), PromptThoughts::kNone);
  EXPECT_EQ(at_end(""), PromptThoughts::kNone);
  // A model's vocabulary may be padded.
  EXPECT_EQ(thoughts_at_end(tokenizer, std::vector<int32_t>{1, tokenizer.vocab_size() + 3}), PromptThoughts::kNone);
}

}  // namespace
}  // namespace tiercel::test
