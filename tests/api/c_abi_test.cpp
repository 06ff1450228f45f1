// The C interface against the C++ one: that it has all of it, and says the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <set>

#include "engine/tiercel_c.h"
#include "tests/api/model.h"

namespace tiercel::test {
namespace {

std::vector<std::string> names_of(const char* (*name)(size_t)) {
  std::vector<std::string> names;
  while (const char* one = name(names.size())) names.emplace_back(one);
  EXPECT_EQ(name(names.size() + 1), nullptr);
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
  return names;
}

// A text of the library's, freed.
std::string taken(char* text) {
  const std::string copy = text;
  tiercel_free(text);
  return copy;
}

// The call must fail with this status and a message that holds this text.
#define EXPECT_REFUSED(call, expected, text)                                           \
  do {                                                                                 \
    tiercel_error* error = nullptr;                                                    \
    EXPECT_EQ(call, expected);                                                         \
    EXPECT_NE(std::string(tiercel_error_message(error)).find(text), std::string::npos) \
        << tiercel_error_message(error);                                               \
    tiercel_error_free(error);                                                         \
  } while (false)

// The demo model by both interfaces, and options whose plan has a note.
class CAbi : public ::testing::Test {
 protected:
  CAbi() {
    tiercel_options* options = tiercel_options_new();
    tiercel_options_set(options, "backend", "cpu", nullptr);
    tiercel_options_set(options, "threads", "2", nullptr);
    EXPECT_EQ(tiercel_engine_open(demo_directory(), options, &engine_, nullptr), TIERCEL_OK);
    tiercel_options_free(options);
    // More than there is.
    tiercel_options_set(adjusted_, "key-codec", "lowrank", nullptr);
    tiercel_options_set(adjusted_, "rank", "4000", nullptr);
  }
  ~CAbi() override {
    tiercel_options_free(adjusted_);
    tiercel_engine_close(engine_);
  }

  Engine cpp_ = open_demo();
  const Options cpp_adjusted_ = {{"key-codec", "lowrank"}, {"rank", "4000"}};
  tiercel_engine* engine_ = nullptr;
  tiercel_options* adjusted_ = tiercel_options_new();
};

// Every number of the structs is 8 bytes (but RequestStats::state, which padding makes so) and
// comes before what is none.
TEST_F(CAbi, EveryNumberOfTheStructsHasAName) {
  const size_t n_model = offsetof(ModelInfo, end_tokens) / 8;
  const size_t n_plan = offsetof(MemoryPlan, composition) / 8;
  EXPECT_EQ(names_of(tiercel_engine_number_name).size(), n_model);
  EXPECT_EQ(names_of(tiercel_engine_plan_name).size(), n_plan);
  EXPECT_EQ(names_of(tiercel_number_name).size(), sizeof(Stats) / 8 + n_plan);
  EXPECT_EQ(names_of(tiercel_batch_number_name).size(), sizeof(BatchStats) / 8 + n_plan);
  EXPECT_EQ(names_of(tiercel_request_number_name).size(), sizeof(RequestStats) / 8);
}

TEST_F(CAbi, NumbersOfModelsAndPlans) {
  double value = 0;
  for (const std::string& name : names_of(tiercel_engine_number_name)) {
    EXPECT_EQ(tiercel_engine_number(engine_, name.c_str(), &value, nullptr), TIERCEL_OK) << name;
  }
  EXPECT_EQ(tiercel_engine_number(engine_, "weight-bytes", &value, nullptr), TIERCEL_OK);
  EXPECT_EQ(value, cpp_.info().weight_bytes);
  const std::vector<std::string> names = names_of(tiercel_engine_plan_name);
  double parts = 0;  // of the device: they lead the list, up to their total
  bool summed = false;
  for (const std::string& name : names) {
    EXPECT_EQ(tiercel_engine_plan(engine_, 5000, nullptr, name.c_str(), &value, nullptr),
              TIERCEL_OK)
        << name;
    if (name == "device-total") {
      EXPECT_EQ(parts, value);
      EXPECT_EQ(value, cpp_.plan(5000).device_total);
      summed = true;
    } else if (!summed) {
      parts += value;
    }
  }
  EXPECT_TRUE(summed);
  ASSERT_EQ(tiercel_engine_plan(engine_, 5000, nullptr, "session-file", &value, nullptr),
            TIERCEL_OK);
  EXPECT_GT(value, 0);
}

// All of them at once are each of them, in as much room as there is.
template <typename All, typename One>
void expect_the_same(const char* (*name)(size_t), All all, One one) {
  const std::vector<std::string> names = names_of(name);
  std::vector<double> values(names.size() + 1, -7);
  ASSERT_EQ(all(values.data(), values.size(), nullptr), TIERCEL_OK);
  EXPECT_EQ(values.back(), -7);
  for (size_t i = 0; i < names.size(); ++i) {
    double value = 0;
    ASSERT_EQ(one(names[i].c_str(), &value, nullptr), TIERCEL_OK) << names[i];
    // What is measured anew: the memory of this process.
    if (names[i] != "process" && names[i] != "resident") {
      EXPECT_EQ(values[i], value) << names[i];
    }
  }
  for (size_t room = 0; room <= names.size(); ++room) {
    std::vector<double> some(names.size(), -7);
    ASSERT_EQ(all(some.data(), room, nullptr), TIERCEL_OK);
    EXPECT_TRUE(std::all_of(some.begin() + static_cast<std::ptrdiff_t>(room), some.end(),
                            [](double value) { return value == -7; }));
    if (room > 0 && names[room - 1] != "process" && names[room - 1] != "resident") {
      EXPECT_EQ(some[room - 1], values[room - 1]) << names[room - 1];
    }
  }
  EXPECT_EQ(all(nullptr, size_t{0}, nullptr), TIERCEL_OK);
  EXPECT_REFUSED(all(nullptr, size_t{1}, &error), TIERCEL_USAGE, "values");
}

TEST_F(CAbi, NumbersAllAtOnce) {
  expect_the_same(
      tiercel_engine_number_name,
      [&](auto... rest) { return tiercel_engine_numbers(engine_, rest...); },
      [&](auto... rest) { return tiercel_engine_number(engine_, rest...); });
  expect_the_same(
      tiercel_engine_plan_name,
      [&](auto... rest) { return tiercel_engine_plan_numbers(engine_, 5000, adjusted_, rest...); },
      [&](auto... rest) { return tiercel_engine_plan(engine_, 5000, adjusted_, rest...); });
  const std::string prompt = prompt_text(3);
  tiercel_session* session = nullptr;
  ASSERT_EQ(tiercel_session_open(engine_, nullptr, &session, nullptr), TIERCEL_OK);
  ASSERT_EQ(tiercel_session_prefill(session, prompt.data(), prompt.size(), nullptr, nullptr, nullptr),
            TIERCEL_OK);
  ASSERT_EQ(tiercel_session_generate(session, 3, nullptr, nullptr, nullptr, nullptr), TIERCEL_OK);
  expect_the_same(
      tiercel_number_name, [&](auto... rest) { return tiercel_session_numbers(session, rest...); },
      [&](auto... rest) { return tiercel_session_number(session, rest...); });
  tiercel_session_close(session);
  tiercel_options_set(adjusted_, "max-prompt", "1K", nullptr);
  tiercel_batch* batch = nullptr;
  ASSERT_EQ(tiercel_batch_open(engine_, adjusted_, &batch, nullptr), TIERCEL_OK);
  expect_the_same(  // before its thread has anything to do
      tiercel_batch_number_name,
      [&](auto... rest) { return tiercel_batch_numbers(batch, rest...); },
      [&](auto... rest) { return tiercel_batch_number(batch, rest...); });
  tiercel_request* request = nullptr;
  ASSERT_EQ(tiercel_batch_submit(batch, prompt.data(), prompt.size(), 3, nullptr, nullptr, nullptr,
                                 &request, nullptr),
            TIERCEL_OK);
  ASSERT_EQ(tiercel_request_wait(request, nullptr, nullptr), TIERCEL_OK);
  expect_the_same(
      tiercel_request_number_name,
      [&](auto... rest) { return tiercel_request_numbers(request, rest...); },
      [&](auto... rest) { return tiercel_request_number(request, rest...); });
  tiercel_request_free(request);
  tiercel_batch_close(batch);
}

TEST_F(CAbi, PrefixesOfABatch) {
  const std::string document = "The magic number for silver-harbor is 48213.\n", more = "The magic";
  tiercel_options_set(adjusted_, "max-prompt", "1K", nullptr);
  tiercel_batch* batch = nullptr;
  ASSERT_EQ(tiercel_batch_open(engine_, adjusted_, &batch, nullptr), TIERCEL_OK);
  tiercel_prefix *of_text = nullptr, *of_tokens = nullptr;
  ASSERT_EQ(tiercel_batch_share(batch, document.data(), document.size(), nullptr, &of_text, nullptr),
            TIERCEL_OK);
  const std::vector<int32_t> tokens = cpp_.tokenize(document);
  ASSERT_EQ(tiercel_batch_share_tokens(batch, tokens.data(), tokens.size(), &of_tokens, nullptr),
            TIERCEL_OK);
  EXPECT_EQ(tiercel_prefix_n_tokens(of_text), tokens.size());
  EXPECT_EQ(tiercel_prefix_n_tokens(of_tokens), tokens.size());
  EXPECT_EQ(tiercel_prefix_n_tokens(nullptr), 0u);
  const std::vector<int32_t> behind = cpp_.tokenize(more, {{"no-bos", "true"}});
  tiercel_request *first = nullptr, *second = nullptr;
  ASSERT_EQ(tiercel_batch_submit_behind(batch, of_text, more.data(), more.size(), 5, nullptr, nullptr,
                                        nullptr, &first, nullptr),
            TIERCEL_OK);
  ASSERT_EQ(tiercel_batch_submit_tokens_behind(batch, of_tokens, behind.data(), behind.size(), 5,
                                               nullptr, nullptr, nullptr, &second, nullptr),
            TIERCEL_OK);
  tiercel_prefix_free(of_tokens);  // its request has it
  tiercel_prefix_free(nullptr);
  int32_t *found = nullptr, *same = nullptr;
  size_t n_found = 0, n_same = 0;
  ASSERT_EQ(tiercel_request_tokens(first, &found, &n_found, nullptr), TIERCEL_OK);
  ASSERT_EQ(tiercel_request_tokens(second, &same, &n_same, nullptr), TIERCEL_OK);
  EXPECT_EQ(std::vector<int32_t>(found, found + n_found), std::vector<int32_t>(same, same + n_same));
  tiercel_free(found);
  tiercel_free(same);
  double n_prefix = 0;
  ASSERT_EQ(tiercel_request_number(first, "prefix-tokens", &n_prefix, nullptr), TIERCEL_OK);
  EXPECT_EQ(n_prefix, static_cast<double>(tokens.size()));
  tiercel_request_free(first);
  tiercel_request_free(second);
  EXPECT_REFUSED(tiercel_batch_share_tokens(batch, nullptr, 0, &of_tokens, &error), TIERCEL_USAGE,
                 "the prefix is empty");
  EXPECT_REFUSED(tiercel_batch_submit_behind(batch, nullptr, "x", 1, 5, nullptr, nullptr, nullptr,
                                             &first, &error),
                 TIERCEL_USAGE, "prefix");
  tiercel_batch_close(batch);
  tiercel_prefix_free(of_text);
}

TEST_F(CAbi, EndTokens) {
  int32_t* tokens = nullptr;
  size_t n = 0;
  ASSERT_EQ(tiercel_engine_end_tokens(engine_, &tokens, &n, nullptr), TIERCEL_OK);
  const std::vector<int64_t> expected = cpp_.info().end_tokens;
  EXPECT_EQ(std::vector<int64_t>(tokens, tokens + n), expected);
  EXPECT_GT(n, 0u);
  tiercel_free(tokens);
  EXPECT_REFUSED(tiercel_engine_end_tokens(nullptr, &tokens, &n, &error), TIERCEL_USAGE, "engine");
  EXPECT_REFUSED(tiercel_engine_end_tokens(engine_, nullptr, &n, &error), TIERCEL_USAGE, "tokens");
  EXPECT_REFUSED(tiercel_engine_end_tokens(engine_, &tokens, nullptr, &error), TIERCEL_USAGE,
                 "n_tokens");
}

TEST_F(CAbi, WordsOfPlans) {
  const MemoryPlan plan = cpp_.plan(5000, cpp_adjusted_);
  ASSERT_EQ(plan.notes.size(), 1u);
  char* text = nullptr;
  ASSERT_EQ(tiercel_engine_plan_text(engine_, 5000, adjusted_, "composition", &text, nullptr),
            TIERCEL_OK);
  EXPECT_EQ(taken(text), plan.composition);
  ASSERT_EQ(tiercel_engine_plan_text(engine_, 5000, adjusted_, "notes", &text, nullptr),
            TIERCEL_OK);
  EXPECT_EQ(taken(text), plan.notes[0] + "\n");
  ASSERT_EQ(tiercel_engine_plan_text(engine_, 5000, nullptr, "notes", &text, nullptr), TIERCEL_OK);
  EXPECT_EQ(taken(text), "");
  EXPECT_REFUSED(tiercel_engine_plan_text(engine_, 5000, nullptr, "backend", &text, &error),
                 TIERCEL_USAGE, "there are: composition, notes");
  EXPECT_REFUSED(tiercel_engine_plan_text(engine_, 5000, nullptr, nullptr, &text, &error),
                 TIERCEL_USAGE, "name");
  EXPECT_REFUSED(tiercel_engine_plan_text(engine_, 5000, nullptr, "notes", nullptr, &error),
                 TIERCEL_USAGE, "text");
  EXPECT_REFUSED(tiercel_engine_plan_text(nullptr, 5000, nullptr, "notes", &text, &error),
                 TIERCEL_USAGE, "engine");
}

TEST_F(CAbi, WordsOfBatches) {
  tiercel_options_set(adjusted_, "max-prompt", "100", nullptr);
  Options options = cpp_adjusted_;
  const Batch cpp_batch = cpp_.open_batch(options.set("max-prompt", "100"));
  const MemoryPlan plan = cpp_batch.memory();
  ASSERT_FALSE(plan.notes.empty());
  tiercel_batch* batch = nullptr;
  ASSERT_EQ(tiercel_batch_open(engine_, adjusted_, &batch, nullptr), TIERCEL_OK);
  char* text = nullptr;
  ASSERT_EQ(tiercel_batch_text(batch, "composition", &text, nullptr), TIERCEL_OK);
  EXPECT_EQ(taken(text), plan.composition);
  ASSERT_EQ(tiercel_batch_text(batch, "notes", &text, nullptr), TIERCEL_OK);
  std::string notes;
  for (const std::string& note : plan.notes) notes += note + "\n";
  EXPECT_EQ(taken(text), notes);
  EXPECT_REFUSED(tiercel_batch_text(batch, "song", &text, &error), TIERCEL_USAGE, "composition");
  EXPECT_REFUSED(tiercel_batch_text(batch, nullptr, &text, &error), TIERCEL_USAGE, "name");
  EXPECT_REFUSED(tiercel_batch_text(batch, "notes", nullptr, &error), TIERCEL_USAGE, "text");
  EXPECT_REFUSED(tiercel_batch_text(nullptr, "notes", &text, &error), TIERCEL_USAGE, "batch");
  tiercel_batch_close(batch);
}

TEST_F(CAbi, ASessionCountsItsTokens) {
  tiercel_session* session = nullptr;
  ASSERT_EQ(tiercel_session_open(engine_, nullptr, &session, nullptr), TIERCEL_OK);
  size_t n = 99;
  EXPECT_EQ(tiercel_session_n_tokens(session, &n, nullptr), TIERCEL_OK);
  EXPECT_EQ(n, 0u);
  const std::vector<int32_t> prompt = cpp_.tokenize(prompt_text(3));
  ASSERT_EQ(tiercel_session_prefill_tokens(session, prompt.data(), prompt.size(), nullptr, nullptr,
                                           nullptr),
            TIERCEL_OK);
  ASSERT_EQ(tiercel_session_step(session, 7, nullptr), TIERCEL_OK);
  EXPECT_EQ(tiercel_session_n_tokens(session, &n, nullptr), TIERCEL_OK);
  EXPECT_EQ(n, prompt.size() + 1);
  EXPECT_REFUSED(tiercel_session_n_tokens(session, nullptr, &error), TIERCEL_USAGE, "n_tokens");
  EXPECT_REFUSED(tiercel_session_n_tokens(nullptr, &n, &error), TIERCEL_USAGE, "session");
  tiercel_session_close(session);
}

using Lines = std::vector<std::pair<tiercel_log_level, std::string>>;

void keep_line(void* user, tiercel_log_level level, const char* line, size_t length) {
  static_cast<Lines*>(user)->emplace_back(level, std::string(line, length));
}

TEST_F(CAbi, WarningsAreLoggedAsSuch) {
  Lines lines;
  const std::string prompt = prompt_text(3);
  const auto prefill = [&] {
    tiercel_session* session = nullptr;
    EXPECT_EQ(tiercel_session_open(engine_, adjusted_, &session, nullptr), TIERCEL_OK);
    EXPECT_EQ(
        tiercel_session_prefill(session, prompt.data(), prompt.size(), nullptr, nullptr, nullptr),
        TIERCEL_OK);
    tiercel_session_close(session);
  };
  tiercel_engine_set_log(engine_, keep_line, &lines, TIERCEL_LOG_INFO, nullptr);
  prefill();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].first, TIERCEL_LOG_INFO);
  EXPECT_EQ(lines[1].first, TIERCEL_LOG_WARNING);
  EXPECT_NE(lines[1].second.find("--rank 4000"), std::string::npos) << lines[1].second;
  lines.clear();
  tiercel_engine_set_log(engine_, keep_line, &lines, TIERCEL_LOG_WARNING, nullptr);
  prefill();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].first, TIERCEL_LOG_WARNING);
  tiercel_engine_set_log(engine_, keep_line, &lines, TIERCEL_LOG_ERROR, nullptr);
  prefill();
  EXPECT_EQ(lines.size(), 1u);
  tiercel_engine_set_log(engine_, nullptr, nullptr, TIERCEL_LOG_INFO, nullptr);
}

}  // namespace
}  // namespace tiercel::test
