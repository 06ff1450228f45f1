// The engine against transformers, on the tiny random checkpoints of tests/golden/models.
//
// The reference computes in fp32 from the same bf16 weights; the engine keeps activations in bf16,
// as transformers does when it runs a bf16 model. So the yardstick is transformers' own bf16 run,
// whose deviation from fp32 the golden file records ("bf16_logit_error", rms over 96 positions):
// over the nine positions compared the engine may deviate 1.5 times as much (it rounds at other
// places, and its prefill probabilities carry 1.4 times the noise), at a single position three
// times.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/base/check.h"
#include "engine/safetensors.h"
#include "engine/session.h"
#include "tests/engine/backend.h"
#include "tests/engine/rms.h"
#include "tests/engine/two_tiers.h"
#include "tests/random_constraint.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

using test::kBackend;

struct Golden {
  std::vector<int32_t> prompt, greedy;
  std::vector<double> margins;
  double bf16_error = 0;
  std::vector<float> logits, logprobs, greedy_logits;
};

std::vector<float> floats(const SafetensorsFile& file, const char* name) {
  const TensorInfo* tensor = file.find(name);
  CHECK(tensor != nullptr && tensor->dtype == DType::kF32);
  std::vector<float> values(static_cast<size_t>(tensor->n_elements()));
  std::memcpy(values.data(), tensor->data, tensor->bytes);
  return values;
}

Golden load(const fs::path& directory) {
  std::ifstream stream(directory / "golden.json");
  const auto json = nlohmann::json::parse(stream);
  const SafetensorsFile file = SafetensorsFile::open(directory / "golden.safetensors");
  Golden golden;
  golden.prompt = json.at("prompt").get<std::vector<int32_t>>();
  golden.greedy = json.at("greedy").get<std::vector<int32_t>>();
  golden.margins = json.at("margins").get<std::vector<double>>();
  golden.bf16_error = json.at("bf16_logit_error").get<double>();
  golden.logits = floats(file, "logits");
  golden.logprobs = floats(file, "logprobs");
  golden.greedy_logits = floats(file, "greedy_logits");
  return golden;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(TIERCEL_SOURCE_DIR "/tests/golden/models")) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class GoldenModel : public testing::TestWithParam<std::string> {
 protected:
  fs::path directory() const {
    return fs::path(TIERCEL_SOURCE_DIR "/tests/golden/models") / GetParam();
  }
};

// Runs prompt and forced continuation; compares logits after each of them. directory: of the golden values.
void compare(const fs::path& directory, const SessionOptions& options, const fs::path& path_of_model) {
  const Golden golden = load(directory);
  auto model = Model::open(path_of_model.string(), {.backend = kBackend, .n_threads = 2});
  const int64_t n_new = static_cast<int64_t>(golden.greedy.size());
  const auto n_prompt = static_cast<int64_t>(golden.prompt.size());
  auto session = Session::open(model, Session::plan(*model, options, n_prompt, n_new, true));
  std::vector<double> logprobs(golden.prompt.size() - 1);
  ASSERT_TRUE(session->prefill_logprobs(golden.prompt, logprobs, {}));

  const auto vocab = static_cast<size_t>(model->config().vocab_size);
  const double allowed = 1.5 * golden.bf16_error;
  std::vector<double> errors = {test::rms_difference(session->logits(), std::span(golden.logits).last(vocab))};
  std::vector<float> ours(logprobs.begin(), logprobs.end());
  EXPECT_LT(test::rms_difference(ours, golden.logprobs), 2 * allowed);

  Sampler greedy({}, model->config().vocab_size);
  const ConstraintSource constraint =
      test::source_of(std::make_shared<test::RandomConstraint>(test::seed(), model->config().vocab_size));
  Sampler held({.constraint = constraint}, model->config().vocab_size);
  Sampler failing({.constraint = [] () -> std::shared_ptr<TokenConstraint> { fail("nothing may come"); }},
                  model->config().vocab_size);
  Sampler held_draws({.temperature = 1, .seed = 7, .constraint = constraint}, model->config().vocab_size);
  for (size_t step = 0; step < golden.greedy.size(); ++step) {
    const auto logits = session->logits();
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(session->sample(greedy, {}), best);
    for (Sampler* sampler : {&held, &held_draws}) {  // by the backend, and from its logits
      Sampler twin = *sampler;
      EXPECT_EQ(session->sample(*sampler, {}), twin.sample(session->logits(), {}));
    }
    EXPECT_THROW(session->sample(failing, {}), Error);
    if (golden.margins[step] > 6 * allowed) {
      EXPECT_EQ(best, golden.greedy[step]) << "step " << step;
    }
    session->step(golden.greedy[step]);
    if ((step + 1) * vocab <= golden.greedy_logits.size()) {
      errors.push_back(test::rms_difference(session->logits(),
                                 std::span(golden.greedy_logits).subspan(step * vocab, vocab)));
    }
  }
  double square = 0;
  for (double error : errors) {
    square += error * error;
    EXPECT_LT(error, 2 * allowed);
  }
  EXPECT_LT(std::sqrt(square / static_cast<double>(errors.size())), allowed);
}

TEST_P(GoldenModel, Dense) {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  compare(directory(), options, directory());
}

TEST_P(GoldenModel, ExactExp) {
  // On a GPU exponentials are fp32 in any case: this would be Dense again.
  if (kBackend == BackendKind::kCuda) return;
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  options.exact_exp = true;
  compare(directory(), options, directory());
}

// Everything selected, through all tiers: a small window, so that the middle is long.
TEST_P(GoldenModel, ShadowWithWholeBudget) {
  SessionOptions options = test::two_tiers();
  options.attention = AttentionMode::kShadow;
  options.selection.budget = kBudgetAll;
  options.selection.recent = 24;
  options.selection.outliers = 2;
  compare(directory(), options, directory());
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, testing::ValuesIn(model_names()),
                         [](const auto& info) { return info.param; });

// What llama.cpp has made of some of them, and of one that is there as such a file only.
class GoldenGguf : public testing::TestWithParam<std::string> {
 protected:
  static inline const fs::path kGolden = TIERCEL_SOURCE_DIR "/tests/golden";
  fs::path file() const { return kGolden / "gguf" / (GetParam() + ".gguf"); }
  fs::path original() const { return kGolden / "models" / GetParam(); }
};

TEST_P(GoldenGguf, Dense) {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  compare(fs::exists(original()) ? original() : kGolden / "gguf" / GetParam(), options, file());
}

class ConvertedModel : public GoldenGguf {};

TEST_P(ConvertedModel, IsTheOriginalBitByBit) {
  const Golden golden = load(original());
  const auto logits_of = [&](const fs::path& path) {
    auto model = Model::open(path.string(), {.backend = kBackend, .n_threads = 2});
    SessionOptions options;
    options.attention = AttentionMode::kDense;
    const auto n_prompt = static_cast<int64_t>(golden.prompt.size());
    auto session = Session::open(model, Session::plan(*model, options, n_prompt, 1));
    CHECK(session->prefill(golden.prompt, {}));
    const std::span<const float> logits = session->logits();
    return std::vector<float>(logits.begin(), logits.end());
  };
  const std::vector<float> expected = logits_of(original()), found = logits_of(file());
  // Llama 3's wavelengths are in the file in fp32, where config.json has what they follow from.
  if (GetParam() != "llama_rope_llama3") {
    EXPECT_EQ(found, expected);
  } else {
    EXPECT_LT(test::rms_difference(found, expected), golden.bf16_error);
  }
}

std::vector<std::string> gguf_names(bool of_converted) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(TIERCEL_SOURCE_DIR "/tests/golden/gguf")) {
    const fs::path& path = entry.path();
    const std::string name = path.stem().string();
    const bool is_model = path.extension() == ".gguf" && !name.starts_with("tokenizer_");
    const bool is_here = fs::exists(TIERCEL_SOURCE_DIR "/tests/golden/gguf/" + name);
    if (is_model && !(of_converted && is_here)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenGguf, testing::ValuesIn(gguf_names(false)),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Models, ConvertedModel, testing::ValuesIn(gguf_names(true)),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tiercel
