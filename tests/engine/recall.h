// The demo model and a prompt that it answers, as its sessions' tests use them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/session.h"
#include "engine/text/tokenizer.h"
#include "tests/engine/rms.h"
#include "tests/sanitized.h"

namespace tiercel::test {

inline constexpr const char* kModel = TIERCEL_SOURCE_DIR "/tools/demo/recall-4m";

inline std::shared_ptr<Model> model(int threads = 2) {
  return Model::open(kModel, {.backend = BackendKind::kCpu, .n_threads = threads});
}

// n sentences that say nothing.
inline std::string filler(int64_t first, int64_t n) {
  std::string text;
  for (int64_t i = first; i < first + n; ++i) {
    text += fmt::format("Step {} of the guide explains how part {} of the machine is cleaned. ", i,
                        (i * 37) % 101);
  }
  return text;
}

// A fact among filler, and the question for it. Short under a sanitizer.
inline std::vector<int32_t> prompt(int64_t n_filler_sentences) {
  if (kSanitized && n_filler_sentences > 40) n_filler_sentences = 40;
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  const int64_t before = n_filler_sentences / 3 + 1;
  std::string text = filler(0, before) + "\nThe magic number for silver-harbor is 48213.\n" +
                     filler(before, n_filler_sentences - before);
  text += "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is";
  return tokenizer.encode(text);
}

inline std::vector<float> logits_after(const std::vector<int32_t>& ids, int64_t n_prefilled,
                                const SessionOptions& options, int threads = 2) {
  auto m = model(threads);
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::open(m, Session::plan(*m, options, n_prefilled, n - n_prefilled + 1));
  EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prefilled)), {}));
  for (int64_t i = n_prefilled; i < n; ++i) session->step(ids[static_cast<size_t>(i)]);
  return {session->logits().begin(), session->logits().end()};
}

inline SessionOptions dense() {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  options.prefill = PrefillMode::kDense;
  return options;
}

inline std::string answer(const std::vector<int32_t>& ids, const SessionOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  auto m = model();
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::open(m, Session::plan(*m, options, n, 8));
  EXPECT_TRUE(session->prefill(ids, {}));
  std::vector<int32_t> out;
  for (int i = 0; i < 6; ++i) {
    const auto logits = session->logits();
    out.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    session->step(out.back());
  }
  return tokenizer.decode(out, true);
}

// What an action that must fail complains of.
inline ErrorKind kind_of(const std::function<void()>& action, std::string* message = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.kind();
  }
  ADD_FAILURE() << "no Error";
  return ErrorKind::kInterrupted;
}

}  // namespace tiercel::test
