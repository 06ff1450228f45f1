// KvStore against a store that keeps everything, on any pair of tiers (kv_store_case.h).
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "tests/offload/kv_store_case.h"
#include "tests/offload/kv_store_compositions.h"

namespace tiercel::test {

template <typename Tiers>
class KvStoreSuite : public testing::Test {};
TYPED_TEST_SUITE_P(KvStoreSuite);

TYPED_TEST_P(KvStoreSuite, EverythingSelectedEqualsDense) {
  const std::vector<int64_t> lengths = TypeParam::kEmulated
                                           ? std::vector<int64_t>{17, 120}
                                           : std::vector<int64_t>{1, 17, 64, 65, 200, 331};
  for (const int64_t n_prompt : lengths) {
    const Sequence sequence(Model{}, n_prompt + (TypeParam::kEmulated ? 20 : 150), seed());
    const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
    for (int32_t chunk : {8, 16, 5}) {
      KvSettings settings = tiered();
      settings.chunk_tokens = chunk;
      settings.sinks = 4 * chunk;
      const Outcome result = run<TypeParam>(sequence, settings, n_prompt);
      EXPECT_LT(relative_error(result.outputs, reference.outputs), kSameUpToRounding<TypeParam>)
          << "prompt " << n_prompt << " chunk " << chunk;
    }
  }
}

// Of a prompt that ends within them, or just behind, sinks are what the window does not hold.
TYPED_TEST_P(KvStoreSuite, SinksMayOutlastThePrompt) {
  const int64_t n_prompt = 190, n_new = TypeParam::kEmulated ? 6 : 120;
  const Sequence sequence(Model{}, n_prompt + n_new, seed() + 17);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  for (const int64_t sinks : {144, 152, 1600}) {
    KvSettings settings = tiered();
    settings.sinks = sinks;
    EXPECT_LT(relative_error(run<TypeParam>(sequence, settings, n_prompt).outputs, reference.outputs),
              kSameUpToRounding<TypeParam>)
        << sinks;
  }
}

TYPED_TEST_P(KvStoreSuite, LowRankOfFullRankEqualsDenseToCodecPrecision) {
  const int64_t n_prompt = TypeParam::kEmulated ? 170 : 350;
  const Sequence sequence(Model{}, n_prompt + (TypeParam::kEmulated ? 12 : 70), seed() + 1);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  KvSettings settings = tiered();
  settings.keys = KeyForm::kLowRank;
  const Outcome result = run<TypeParam>(sequence, settings, n_prompt);
  // Coefficients, basis and rebuilt keys are bf16: three roundings of 2^-9 relative on keys of norm
  // about 9 against queries of norm 8, over sqrt(64): score errors near 0.03 rms, so outputs of
  // softmax-weighted normal values move by a few percent of their rms at most.
  EXPECT_LT(relative_error(result.outputs, reference.outputs), 0.15);
  for (double residual : result.residual) EXPECT_LT(residual, 1e-9);
}

TYPED_TEST_P(KvStoreSuite, PlantedRankIsRebuilt) {
  const int64_t n_prompt = TypeParam::kEmulated ? 170 : 350;
  const Sequence sequence(Model{}, n_prompt + (TypeParam::kEmulated ? 12 : 70), seed() + 2, 12);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  KvSettings settings = tiered();
  settings.keys = KeyForm::kLowRank;
  settings.rank = 16;
  const Outcome result = run<TypeParam>(sequence, settings, n_prompt);
  EXPECT_LT(relative_error(result.outputs, reference.outputs), 0.15);
  for (double residual : result.residual) EXPECT_LT(residual, 1e-4);
  // Far fewer directions than the keys have must show: the test can fail.
  settings.rank = 2;
  EXPECT_GT(relative_error(run<TypeParam>(sequence, settings, n_prompt).outputs, reference.outputs),
            0.3);
}

TYPED_TEST_P(KvStoreSuite, SlidingWindowLayersKeepTheirWindow) {
  Model model;
  model.n_layers = 3;
  model.window = {24, 0, 24};
  const std::vector<int64_t> lengths =
      TypeParam::kEmulated ? std::vector<int64_t>{25} : std::vector<int64_t>{10, 24, 25, 200};
  for (const int64_t n_prompt : lengths) {
    const Sequence sequence(model, n_prompt + (TypeParam::kEmulated ? 60 : 120), seed() + 3);
    const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
    const Outcome result = run<TypeParam>(sequence, tiered(), n_prompt);
    EXPECT_LT(relative_error(result.outputs, reference.outputs), kSameUpToRounding<TypeParam>)
        << n_prompt;
  }
}

TYPED_TEST_P(KvStoreSuite, TheBudgetBoundsWhatIsFetched) {
  const int64_t n_prompt = TypeParam::kEmulated ? 300 : 600, n_new = TypeParam::kEmulated ? 6 : 100;
  const Sequence sequence(Model{}, n_prompt + n_new, seed() + 4);
  KvSettings settings = tiered();
  settings.budget = 64;
  for (double slots : {1.0, 2.0, 4.0}) {
    settings.slots = slots;
    const Outcome result = run<TypeParam>(sequence, settings, n_prompt);
    const SelectionCounters& c = result.counters;
    EXPECT_EQ(c.steps, 2 * n_new);
    EXPECT_EQ(c.selected_chunks, c.steps * 2 * (64 / 8));
    EXPECT_LE(c.hit_chunks, c.selected_chunks);
    EXPECT_EQ(c.fetched_bytes, (c.selected_chunks - c.hit_chunks) * 8 * 64 * 2 * 2);
    // The size of the selection cache changes what is fetched, never the answer.
    KvSettings one = settings;
    one.slots = 1;
    EXPECT_LT(relative_error(result.outputs, run<TypeParam>(sequence, one, n_prompt).outputs),
              kSameUpToRounding<TypeParam>);
  }
}

TYPED_TEST_P(KvStoreSuite, AuditOfEverythingIsOne) {
  const int64_t n_new = TypeParam::kEmulated ? 6 : 30;
  const Sequence sequence(Model{}, 300 + n_new, seed() + 5);
  KvSettings settings = tiered();
  settings.audit = true;
  const Outcome all = run<TypeParam>(sequence, settings, 300);
  EXPECT_EQ(all.mass.steps(), n_new);
  EXPECT_NEAR(all.mass.mean(), 1.0, 1e-5);
  settings.budget = 16;
  const Outcome some = run<TypeParam>(sequence, settings, 300);
  EXPECT_LT(some.mass.mean(), 0.9);
  EXPECT_GT(some.mass.mean(), 0.2);
  EXPECT_LE(some.mass.percentile(0.05), some.mass.mean());
}

// Tokens that attend what one before them selected, some of them with a window that others have grown.
TYPED_TEST_P(KvStoreSuite, FollowersAtOnceAsOneByOne) {
  const int64_t n_prompt = 300, share = 8;
  const Sequence sequence(Model{}, n_prompt + 2 * share, seed() + 15);
  for (const bool on_host : {false, true}) {
    KvSettings settings = tiered();
    settings.budget = 64;
    settings.slots = 2;
    if (on_host) settings.host_use = HostUse::kAlways;
    const Outcome one = run<TypeParam>(sequence, settings, n_prompt, 2, {share, false});
    const Outcome all = run<TypeParam>(sequence, settings, n_prompt, 2, {share, true});
    EXPECT_EQ(one.outputs, all.outputs);
    EXPECT_EQ(one.counters.steps, all.counters.steps);
    EXPECT_EQ(one.counters.steps, int64_t{2} * share * Model{}.n_layers);
  }
}

TYPED_TEST_P(KvStoreSuite, EveryCompositionSelectingEverythingEqualsDense) {
  const int64_t n_prompt = TypeParam::kEmulated ? 130 : 230;
  const Sequence sequence(Model{}, n_prompt + (TypeParam::kEmulated ? 6 : 120), seed() + 7);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  const std::vector<Composition> all = compositions();
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_left_out<TypeParam>(i)) continue;
    KvSettings settings = tiered();
    all[i].apply(settings);
    EXPECT_LT(relative_error(run<TypeParam>(sequence, settings, n_prompt).outputs,
                             reference.outputs),
              kSameUpToRounding<TypeParam>)
        << all[i].name;
  }
}

// What is behind a prefix that others share is attended as if the prefix were its own, whatever they do.
TYPED_TEST_P(KvStoreSuite, BehindASharedPrefix) {
  const int64_t n_prompt = TypeParam::kEmulated ? 130 : 230;
  const Sequence sequence(Model{}, n_prompt + (TypeParam::kEmulated ? 6 : 120), seed() + 21);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  const Taken alone{.behind_beside = 0}, beside{.behind_beside = 1};
  EXPECT_LT(relative_error(run<TypeParam>(sequence, dense(), n_prompt, 2, beside).outputs,
                           reference.outputs),
            kSameUpToRounding<TypeParam>);
  const std::vector<Composition> all = compositions();
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_left_out<TypeParam>(i) || (TypeParam::kEmulated && i % 4 != 0)) continue;
    KvSettings settings = tiered();
    all[i].apply(settings);
    EXPECT_LT(relative_error(run<TypeParam>(sequence, settings, n_prompt, 2, beside).outputs,
                             reference.outputs),
              kSameUpToRounding<TypeParam>)
        << all[i].name;
    if (TypeParam::kEmulated && i > 0) continue;
    settings.budget = 32;
    const Outcome one = run<TypeParam>(sequence, settings, n_prompt, 2, alone);
    EXPECT_EQ(one.outputs, run<TypeParam>(sequence, settings, n_prompt, 2, beside).outputs)
        << all[i].name;
    EXPECT_EQ(one.counters.steps, 2 * (sequence.n_tokens - n_prompt));
  }
  for (const KeyForm keys : {KeyForm::kLowRank, KeyForm::kCoded}) {
    KvSettings coded = tiered();
    coded.keys = keys;
    coded.key_codec = RowCodec::kInt8;
    coded.value_codec = RowCodec::kInt8;
    EXPECT_LT(relative_error(run<TypeParam>(sequence, coded, n_prompt, 2, beside).outputs,
                             reference.outputs),
              keys == KeyForm::kLowRank ? 0.25 : kSameUpToRounding<TypeParam> + 0.1);
  }
}

// Windows that begin before the prefix ends, and biases of its tokens and of those behind it.
TYPED_TEST_P(KvStoreSuite, BehindASharedPrefixWithWindowsAndBiases) {
  const int64_t n_prompt = 130, n_new = TypeParam::kEmulated ? 12 : 120;
  const Taken beside{.behind_beside = 1};
  for (const bool eviction_head : {false, true}) {
    Model model;
    model.window = {24, 0};
    model.eviction_head = eviction_head;
    const Sequence sequence(model, n_prompt + n_new, seed() + 22);
    const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
    for (const KvSettings& settings : {dense(), tiered()}) {
      EXPECT_LT(relative_error(run<TypeParam>(sequence, settings, n_prompt, 2, beside).outputs,
                               reference.outputs),
                kSameUpToRounding<TypeParam>)
          << eviction_head;
    }
  }
}

// Lists that are shared by tokens, and attended by the host.
TYPED_TEST_P(KvStoreSuite, FollowersAndTheHostBehindASharedPrefix) {
  const int64_t n_prompt = 168, share = 3;
  const Sequence sequence(Model{}, n_prompt + 2 * share, seed() + 23);
  for (const HostUse use : {HostUse::kNever, HostUse::kAlways}) {
    KvSettings settings = tiered();
    settings.budget = 64;
    settings.slots = 2;
    settings.host_use = use;
    // The window is never full here: both attend the same.
    const Outcome own = run<TypeParam>(sequence, settings, n_prompt, 2, {.share = share});
    const Outcome shared =
        run<TypeParam>(sequence, settings, n_prompt, 2, {.share = share, .behind_beside = 1});
    EXPECT_LT(relative_error(shared.outputs, own.outputs), kSameUpToRounding<TypeParam>);
    EXPECT_EQ(shared.counters.steps, own.counters.steps);
    EXPECT_EQ(shared.counters.selected_chunks, own.counters.selected_chunks);
  }
}

// Weights that go to the host are rounded to bf16: 2^-8 of each, and of sum(p |v|) in all.
template <typename Tiers>
constexpr double kSameOnTheHost = kSameUpToRounding<Tiers> + 5.0 / 256;

TYPED_TEST_P(KvStoreSuite, TheHostAttendsWhatItWouldSend) {
  const int64_t n_prompt = TypeParam::kEmulated ? 170 : 350, n_new = TypeParam::kEmulated ? 8 : 90;
  const Sequence plain(Model{}, n_prompt + n_new, seed() + 13);
  Model model;
  model.eviction_head = true;
  const Sequence biased(model, n_prompt + n_new, seed() + 13);
  const std::vector<HostAttended> all = host_attended();
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_left_out<TypeParam>(i)) continue;
    const HostAttended& one = all[i];
    KvSettings settings = tiered();
    settings.budget = 64;
    settings.slots = 2;
    one.composition.apply(settings);
    for (const Sequence* sequence : {&plain, &biased}) {
      if (sequence == &biased && !one.weighed) continue;
      const Outcome fetched = run<TypeParam>(*sequence, settings, n_prompt);
      KvSettings on_host = settings;
      on_host.host_use = HostUse::kAlways;
      const Outcome attended = run<TypeParam>(*sequence, on_host, n_prompt);
      EXPECT_LT(relative_error(attended.outputs, fetched.outputs), kSameOnTheHost<TypeParam>)
          << one.composition.name;
      EXPECT_GT(fetched.counters.fetched_bytes, 0) << one.composition.name;
      EXPECT_EQ(attended.counters.fetched_bytes, 0) << one.composition.name;
      EXPECT_EQ(attended.counters.host_layers, 2 - settings.device_layers);
      EXPECT_EQ(attended.counters.steps, fetched.counters.steps);
    }
  }
}

// Which way is faster is the machine's business: both are tried, one of them is taken, and nothing is lost.
TYPED_TEST_P(KvStoreSuite, TheFasterWayIsTried) {
  const int64_t n_prompt = TypeParam::kEmulated ? 200 : 350, n_new = kStepsBeforeTrial + 3;
  const Sequence sequence(Model{}, n_prompt + n_new, seed() + 14);
  for (const KeyForm keys : {KeyForm::kExact, KeyForm::kCoded}) {
    KvSettings settings = tiered();
    settings.budget = 32;
    settings.slots = 2;
    settings.keys = keys;
    if (keys == KeyForm::kCoded) settings.key_codec = RowCodec::kInt8;
    const Outcome fetched = run<TypeParam>(sequence, settings, n_prompt);
    settings.host_use = HostUse::kMeasured;
    const Outcome tried = run<TypeParam>(sequence, settings, n_prompt);
    EXPECT_LT(relative_error(tried.outputs, fetched.outputs), kSameOnTheHost<TypeParam>);
    EXPECT_GT(tried.counters.tried_fetch_seconds, 0);
    EXPECT_GT(tried.counters.tried_host_seconds, 0);
    EXPECT_EQ(fetched.counters.tried_host_seconds, 0);
    EXPECT_EQ(tried.counters.steps, fetched.counters.steps);
    // What is tried is not counted, and what the host attends is not fetched.
    EXPECT_LT(tried.counters.selected_chunks, fetched.counters.selected_chunks);
    EXPECT_GE(tried.counters.selected_chunks, 2 * kStepsBeforeTrial * 2 * (32 / 8));
  }
}

// Every token biases its own scores, wherever it is kept: everything selected still is dense, and it
// would not be without the head. The windows of another layer know it too.
TYPED_TEST_P(KvStoreSuite, EvictionHeadBiasesEveryToken) {
  const int64_t n_prompt = TypeParam::kEmulated ? 130 : 230;
  Model model;
  model.eviction_head = true;
  const Sequence sequence(model, n_prompt + (TypeParam::kEmulated ? 6 : 120), seed() + 12);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  Sequence headless = sequence;
  headless.model.eviction_head = false;
  EXPECT_GT(relative_error(run<TypeParam>(headless, dense(), n_prompt).outputs, reference.outputs),
            0.3);
  const std::vector<Composition> all = compositions();
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_left_out<TypeParam>(i)) continue;
    const Composition& composition = all[i];
    KvSettings settings = tiered();
    composition.apply(settings);
    if (settings.estimate) continue;
    EXPECT_LT(relative_error(run<TypeParam>(sequence, settings, n_prompt).outputs,
                             reference.outputs),
              kSameUpToRounding<TypeParam>)
        << composition.name;
  }
  KvSettings audited = tiered();
  audited.audit = true;
  EXPECT_NEAR(run<TypeParam>(sequence, audited, n_prompt).mass.mean(), 1.0, 1e-5);
  if (TypeParam::kEmulated) return;
  model.window = {24, 0};
  const Sequence windowed(model, n_prompt + 120, seed() + 13);
  EXPECT_LT(relative_error(run<TypeParam>(windowed, tiered(), n_prompt).outputs,
                           run<TypeParam>(windowed, dense(), n_prompt).outputs),
            kSameUpToRounding<TypeParam>);
}

// The chunks of which the head says most stay exact: here they hold nearly all of the mass.
TYPED_TEST_P(KvStoreSuite, EvictionHeadChoosesTheStaticPart) {
  const int64_t n_prompt = TypeParam::kEmulated ? 200 : 400, n_new = TypeParam::kEmulated ? 3 : 20;
  Model model;
  model.eviction_head = true;
  Sequence sequence(model, n_prompt + n_new, seed() + 14);
  KvSettings settings = tiered();
  const int64_t width = int64_t{model.n_kv_heads} * model.head_dim;
  for (int64_t layer = 0; layer < model.n_layers; ++layer) {
    const bf16* delta = sequence.delta.data() + layer * model.n_kv_heads * width;
    for (int64_t t = 0; t < n_prompt; ++t) {
      const int64_t chunk = t / settings.chunk_tokens;
      if (chunk % 4 != 1 || chunk < 4 || chunk > 15) continue;  // 5, 9 and 13
      for (int64_t i = 0; i < width; ++i) {
        float sum = 0;
        for (int32_t j = 0; j < model.n_kv_heads; ++j) sum += static_cast<float>(delta[j * width + i]);
        sequence.v[static_cast<size_t>((layer * sequence.n_tokens + t) * width + i)] = bf16(4 * sum);
      }
    }
  }
  settings.audit = true;
  settings.outliers = 0;
  settings.budget = 8;
  const double without = run<TypeParam>(sequence, settings, n_prompt).mass.mean();
  settings.static_chunks = 3;
  EXPECT_GT(run<TypeParam>(sequence, settings, n_prompt).mass.mean(), 0.9) << "without: " << without;
  EXPECT_LT(without, 0.7);
}

// What is kept in few bits comes back with the error of its codec: q . k of normal keys of 64
// channels has an error of about |q| step / sqrt(12) sqrt(64) / 8 with steps of 1/255 or 1/15 of a
// range of 5, so 0.006 and 0.1; values have step / sqrt(12) by themselves, averaged over what is
// attended.
TYPED_TEST_P(KvStoreSuite, CodecsLoseWhatTheirBitsLose) {
  // An odd capacity: rows of 68 and 36 bytes end anywhere.
  const int64_t n_prompt = TypeParam::kEmulated ? 150 : 350;
  const Sequence sequence(Model{}, n_prompt + (TypeParam::kEmulated ? 5 : 71), seed() + 8);
  const Outcome reference = run<TypeParam>(sequence, dense(), n_prompt);
  const auto error_with = [&](const std::function<void(KvSettings&)>& apply) {
    KvSettings settings = tiered();
    apply(settings);
    return relative_error(run<TypeParam>(sequence, settings, n_prompt).outputs, reference.outputs);
  };
  const auto values = [&](RowCodec codec) {
    return error_with([&](KvSettings& s) { s.value_codec = codec; });
  };
  const auto keys = [&](RowCodec codec) {
    return error_with([&](KvSettings& s) {
      s.keys = KeyForm::kCoded;
      s.key_codec = codec;
    });
  };
  const double exact = kSameUpToRounding<TypeParam>;
  EXPECT_LT(values(RowCodec::kInt8), exact + 0.05);
  EXPECT_LT(values(RowCodec::kInt4), exact + 1.0);
  EXPECT_GT(values(RowCodec::kInt4), 2 * values(RowCodec::kInt8));
  EXPECT_LT(keys(RowCodec::kInt8), exact + 0.1);
  EXPECT_LT(keys(RowCodec::kInt4), exact + 1.5);
  EXPECT_GT(keys(RowCodec::kInt4), 2 * keys(RowCodec::kInt8));
  const double lowrank = error_with([](KvSettings& s) {
    s.keys = KeyForm::kLowRank;
    s.key_codec = RowCodec::kInt8;
  });
  EXPECT_LT(lowrank, 0.25);
  // Codes at home on the device are the same codes.
  const auto home = [&](int64_t device_layers) {
    KvSettings settings = tiered();
    settings.value_codec = RowCodec::kInt8;
    settings.keys = KeyForm::kCoded;
    settings.key_codec = RowCodec::kInt8;
    settings.device_layers = device_layers;
    return run<TypeParam>(sequence, settings, n_prompt).outputs;
  };
  EXPECT_EQ(home(0), home(2));
}

// Fewer steps select, fewer chunks move, and every list stays within its budget.
TYPED_TEST_P(KvStoreSuite, ReuseAndCapsBoundWhatMoves) {
  const int64_t n_prompt = TypeParam::kEmulated ? 300 : 600, n_new = TypeParam::kEmulated ? 8 : 60;
  const Sequence sequence(Model{}, n_prompt + n_new, seed() + 9);
  KvSettings settings = tiered();
  settings.budget = 64;
  settings.outliers = 0;
  const SelectionCounters plain = run<TypeParam>(sequence, settings, n_prompt).counters;
  EXPECT_EQ(plain.decisions, 0);

  KvSettings reuse = settings;
  reuse.reuse_steps = 4;
  const SelectionCounters reused = run<TypeParam>(sequence, reuse, n_prompt).counters;
  EXPECT_EQ(reused.decisions, 2 * n_new);
  EXPECT_EQ(reused.reused, 2 * (n_new - (n_new + 3) / 4));
  EXPECT_EQ(reused.selected_chunks, plain.selected_chunks);
  EXPECT_LT(reused.fetched_bytes, plain.fetched_bytes / 2);
  // Random queries are not alike.
  KvSettings cosine = settings;
  cosine.reuse_cosine = 0.9;
  EXPECT_EQ(run<TypeParam>(sequence, cosine, n_prompt).counters.reused, 0);

  KvSettings cap = settings;
  cap.miss_cap = 3;
  const Outcome capped = run<TypeParam>(sequence, cap, n_prompt);
  EXPECT_LE(capped.counters.selected_chunks - capped.counters.hit_chunks, 3 * 2 * 2 * n_new);
  EXPECT_LT(capped.counters.selected_chunks, plain.selected_chunks);
  cap.estimate = true;
  const Outcome estimated = run<TypeParam>(sequence, cap, n_prompt);
  EXPECT_EQ(estimated.counters.selected_chunks, capped.counters.selected_chunks);
  EXPECT_NE(estimated.outputs, capped.outputs);

  KvSettings little = settings;
  little.group = GroupScore::kMean;
  little.top_p = 0.2;
  const SelectionCounters stopped = run<TypeParam>(sequence, little, n_prompt).counters;
  EXPECT_LT(stopped.selected_chunks, plain.selected_chunks);
  EXPECT_GE(stopped.selected_chunks, 2 * 2 * n_new);

  KvSettings at_home = settings;
  at_home.device_layers = 2;
  EXPECT_EQ(run<TypeParam>(sequence, at_home, n_prompt).counters.fetched_bytes, 0);
}

// What never competes is not attended: with everything cut but the sinks and the window, dense
// attention over a window.
TYPED_TEST_P(KvStoreSuite, DroppedChunksAreNotAttended) {
  const int64_t n_prompt = 330;
  const Sequence sequence(Model{}, n_prompt + 8, seed() + 10);
  KvSettings settings = tiered();
  settings.outliers = 0;
  settings.audit = true;
  const double all = run<TypeParam>(sequence, settings, n_prompt).mass.mean();
  settings.drop_share = 0.5;
  const double half = run<TypeParam>(sequence, settings, n_prompt).mass.mean();
  settings.drop_share = 1;
  const double none = run<TypeParam>(sequence, settings, n_prompt).mass.mean();
  EXPECT_NEAR(all, 1, 1e-5);
  EXPECT_LT(half, 0.95);
  EXPECT_LT(none, half - 0.1);
}

REGISTER_TYPED_TEST_SUITE_P(KvStoreSuite, EveryCompositionSelectingEverythingEqualsDense,
                            EvictionHeadBiasesEveryToken, EvictionHeadChoosesTheStaticPart,
                            CodecsLoseWhatTheirBitsLose, ReuseAndCapsBoundWhatMoves,
                            DroppedChunksAreNotAttended, EverythingSelectedEqualsDense,
                            LowRankOfFullRankEqualsDenseToCodecPrecision, PlantedRankIsRebuilt,
                            SlidingWindowLayersKeepTheirWindow, TheBudgetBoundsWhatIsFetched,
                            AuditOfEverythingIsOne, TheHostAttendsWhatItWouldSend,
                            TheFasterWayIsTried, FollowersAtOnceAsOneByOne, SinksMayOutlastThePrompt,
                            BehindASharedPrefix, BehindASharedPrefixWithWindowsAndBiases,
                            FollowersAndTheHostBehindASharedPrefix);

}  // namespace tiercel::test
