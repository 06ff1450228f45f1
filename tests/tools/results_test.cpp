// What an evaluation writes: tables, JSON, picture; and the choice of tune.
#include "tools/eval/results.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tools/svg.h"
#include "tools/eval/tune.h"

namespace tiercel::test {
namespace {

// Two lengths, two depths, a reference and a composition at two budgets.
EvalResults results() {
  EvalResults all;
  all.model = "a<b>&\"c\"";
  all.style = "plain";
  all.reference = "dense";
  all.depths = {0, 0.5};
  all.series = {
      {"reference (dense)", "reference (dense)", "dense", true, {}},
      {"quest @ 64", "quest", "index minmax", false, {BudgetWish::Kind::kSelected, 64}},
      {"quest @ 256", "quest", "index minmax", false, {BudgetWish::Kind::kSelected, 256}}};
  for (const int64_t length : {1024, 4096}) {
    for (size_t s = 0; s < 3; ++s) {
      all.plans.push_back({s, length,
                           s == 0   ? kBudgetAll
                           : s == 1 ? 64
                                    : 256,
                           s == 0 ? 0 : 32, s == 0 ? "all" : "n + 32", 1000, 2000});
      for (const double depth : all.depths) {
        EvalRecord record{.length = length, .series = s, .depth = depth, .expected = {"7"}};
        record.answer.score = s == 1 && depth == 0.5 ? 0 : 1;
        record.answer.text = "7\xFF";
        if (s > 0) record.reference_score = 1;
        if (s > 0) {
          record.answer.fidelity.add(std::vector<float>{0, 1}, std::vector<float>{0, 2});
          AuditReport audit;
          audit.steps = 2;
          audit.mass_mean = 0.75;
          audit.layer_mass = {NAN, 0.75};
          record.answer.traffic.add({}, audit);
        }
        all.records.push_back(record);
      }
    }
  }
  return all;
}

TEST(Results, TablesNameEveryLengthSeriesAndDepth) {
  const std::string text = eval_tables(results());
  for (const char* part : {"| single | 1,024", "quest @ 64", "quest @ 256", "reference (dense)",
                           "n + 32", "KL nats", "score % at depth", "75.0", "index minmax"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

TEST(Results, JsonHasWhatTheTablesHave) {
  const auto json = nlohmann::json::parse(eval_json(results()));
  EXPECT_EQ(json["series"].size(), 3u);
  EXPECT_EQ(json["cells"].size(), 6u);
  EXPECT_EQ(json["records"].size(), 12u);
  EXPECT_EQ(json["cells"][1]["score"], 0.5);
  EXPECT_EQ(json["cells"][1]["kept"], 0.5);
  EXPECT_TRUE(json["cells"][0]["kept"].is_null());
  EXPECT_TRUE(json["cells"][0]["kl_mean"].is_null());
  EXPECT_GT(json["cells"][1]["kl_mean"], 0);
  EXPECT_TRUE(json["cells"][1]["layer_mass"][0].is_null());
  EXPECT_EQ(json["cells"][1]["layer_mass"][1], 0.75);
  EXPECT_EQ(json["plans"][0]["selected_tokens"], "all");
  EXPECT_EQ(json["plans"][1]["protected_tokens"], 32);
}

// Tags of an SVG close in order, and what is text is escaped.
void expect_well_formed(const std::string& svg) {
  std::vector<std::string> open;
  for (size_t i = 0; (i = svg.find('<', i)) != std::string::npos; ++i) {
    const size_t end = svg.find('>', i);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = svg.substr(i + 1, end - i - 1);
    ASSERT_EQ(tag.find('<'), std::string::npos) << tag;
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag.starts_with('/')) {
      ASSERT_FALSE(open.empty());
      EXPECT_EQ("/" + open.back(), tag);
      open.pop_back();
    } else if (!tag.ends_with('/')) {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
  for (size_t i = 0; (i = svg.find('&', i)) != std::string::npos; ++i) {
    const std::string entity = svg.substr(i, svg.find(';', i) - i);
    EXPECT_TRUE(entity == "&amp" || entity == "&lt" || entity == "&gt" || entity == "&quot")
        << entity;
  }
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(Results, PictureIsWellFormedAndColouredByScore) {
  const EvalResults all = results();
  const std::string svg = eval_svg(all);
  expect_well_formed(svg);
  EXPECT_NE(svg.find("a&lt;b&gt;&amp;&quot;c&quot;"), std::string::npos);
  EXPECT_NE(svg.find("depth 50 %"), std::string::npos);
  EXPECT_NE(svg.find("4,096"), std::string::npos);
  EXPECT_NE(svg.find(scale_color(0)), std::string::npos);
  EXPECT_NE(svg.find("KL from dense"), std::string::npos);
  EvalResults plain = all;
  plain.reference.clear();
  EXPECT_EQ(eval_svg(plain).find("KL from"), std::string::npos);
  plain.records.resize(1);
  plain.plans.clear();
  expect_well_formed(eval_svg(plain));
}

TEST(Results, ScaleIsOrderedInLightness) {
  const auto lightness = [](double v) {
    const std::string c = scale_color(v);
    const auto part = [&](size_t i) { return std::stoi(c.substr(i, 2), nullptr, 16); };
    return 0.299 * part(1) + 0.587 * part(3) + 0.114 * part(5);
  };
  for (int i = 0; i < 20; ++i) EXPECT_LT(lightness(i / 20.0), lightness((i + 1) / 20.0)) << i;
  EXPECT_EQ(scale_color(NAN), "#dddddd");
  EXPECT_STREQ(ink_on(0), "#ffffff");
  EXPECT_STREQ(ink_on(1), "#000000");
}

TuneCandidate candidate(double loss, double seconds) {
  TuneCandidate c;
  c.fidelity.steps = 1;
  c.fidelity.kl_sum = loss;
  c.traffic.steps = 1;
  c.traffic.seconds = seconds;
  return c;
}

TEST(Tune, ChoosesTheFastestOfTheBest) {
  EXPECT_EQ(choose({candidate(0.1, 5), candidate(0.105, 3), candidate(0.2, 1)}, {}), 1u);
  EXPECT_EQ(choose({candidate(0.1, 3), candidate(0.105, 5), candidate(0.2, 1)}, {}), 0u);
  EXPECT_EQ(choose({candidate(0, 3), candidate(5e-5, 2), candidate(2e-4, 1)}, {}), 1u);
  EXPECT_EQ(choose({candidate(0.1, 5), candidate(0.105, 3), candidate(0.2, 1)}, 0.3), 2u);
  // Nothing is as good as was asked for: what loses least.
  EXPECT_EQ(choose({candidate(0.1, 5), candidate(0.105, 3)}, 0.01), 0u);
  EXPECT_EQ(choose({candidate(0.1, 5), candidate(NAN, 3)}, {}), 0u);
}

}  // namespace
}  // namespace tiercel::test
