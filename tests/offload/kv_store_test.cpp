// KvStore against a store that keeps everything, and against fp64 attention written in place.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cpu/ops.h"
#include "engine/base/rope.h"
#include "offload/kv_store.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using Store = KvStore<cpu::Queue, cpu::Queue>;

struct Model {
  int64_t n_layers = 2;
  int32_t n_heads = 4, n_kv_heads = 2, head_dim = 64;
  std::vector<int64_t> window{0, 0};
};

KvShape shape_of(const Model& m) {
  return {m.n_layers, m.n_heads, m.n_kv_heads, m.head_dim, m.window};
}

std::vector<double> frequencies(int head_dim) {
  std::vector<double> f(static_cast<size_t>(head_dim) / 2);
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / head_dim);
  }
  return f;
}

// Random projections of a whole sequence, the same for every store. Keys share a mean and live near a
// subspace of `key_rank` directions, as keys of real models do.
struct Sequence {
  Sequence(const Model& m, int64_t n, uint64_t seed, int key_rank = 1 << 20)
      : model(m), n_tokens(n) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const int64_t kv_width = int64_t{m.n_kv_heads} * m.head_dim;
    const int64_t q_width = int64_t{m.n_heads} * m.head_dim;
    q.resize(static_cast<size_t>(m.n_layers * n * q_width));
    k.resize(static_cast<size_t>(m.n_layers * n * kv_width));
    v.resize(k.size());
    for (bf16& x : q) x = bf16(normal(random));
    for (bf16& x : v) x = bf16(normal(random));
    if (key_rank >= kv_width) {
      for (bf16& x : k) x = bf16(normal(random) + 0.5f);
      return;
    }
    std::vector<float> basis(static_cast<size_t>(key_rank * kv_width));
    for (float& x : basis) x = normal(random) / std::sqrt(static_cast<float>(key_rank));
    for (int64_t row = 0; row < m.n_layers * n; ++row) {
      std::vector<float> coefficient(static_cast<size_t>(key_rank));
      for (float& x : coefficient) x = normal(random);
      for (int64_t c = 0; c < kv_width; ++c) {
        float sum = 2.0f;
        for (int r = 0; r < key_rank; ++r) {
          sum += coefficient[static_cast<size_t>(r)] * basis[static_cast<size_t>(r * kv_width + c)];
        }
        k[static_cast<size_t>(row * kv_width + c)] = bf16(sum);
      }
    }
  }

  // q is turned in place by the store, so each use gets a copy.
  Projections at(int64_t layer, int64_t first, int64_t n, std::vector<bf16>& q_copy) const {
    const int64_t qw = int64_t{model.n_heads} * model.head_dim;
    const int64_t kw = int64_t{model.n_kv_heads} * model.head_dim;
    const auto begin = q.begin() + (layer * n_tokens + first) * qw;
    q_copy.assign(begin, begin + n * qw);
    Projections p;
    p.q = q_copy.data();
    p.k = k.data() + (layer * n_tokens + first) * kw;
    p.v = v.data() + (layer * n_tokens + first) * kw;
    p.n_tokens = n;
    return p;
  }

  Model model;
  int64_t n_tokens;
  std::vector<bf16> q, k, v;
};

struct Outcome {
  std::vector<float> outputs;  // decode outputs of all layers and steps
  SelectionCounters counters;
  MassHistogram mass;
  std::vector<double> residual;
};

Outcome run(const Sequence& sequence, KvSettings settings, int64_t n_prompt, int n_threads = 2) {
  const Model& m = sequence.model;
  cpu::Queue queue({.n_threads = n_threads});
  settings.capacity = sequence.n_tokens;
  settings.prompt = n_prompt;
  const KvLayout layout(shape_of(m), settings);
  Arena<cpu::Queue> device(queue, "device", sum(layout.device_bytes()));
  Arena<cpu::Queue> host(queue, "host", sum(layout.host_bytes()));
  RopeTable rope(frequencies(m.head_dim), sequence.n_tokens);
  Store store(queue, queue, queue, device, host, layout, rope.view(),
              1.0f / std::sqrt(static_cast<float>(m.head_dim)), true);
  EXPECT_EQ(sum(device.used()), sum(layout.device_bytes())) << "the plan and the store disagree";
  EXPECT_EQ(sum(host.used()), sum(layout.host_bytes()));

  std::vector<bf16> q, out(static_cast<size_t>(n_prompt * m.n_heads * m.head_dim));
  for (int64_t layer = 0; layer < m.n_layers; ++layer) {
    const int64_t piece = 160;  // a multiple of every chunk size used here
    for (int64_t first = 0; first < n_prompt; first += piece) {
      const int64_t n = std::min(piece, n_prompt - first);
      store.append_prompt(layer, sequence.at(layer, first, n, q), first);
      store.attend_prompt(layer, q.data(), first, n, true, out.data());
    }
    store.finish_layer(layer, n_prompt);
  }
  store.end_prefill(n_prompt);

  Outcome result;
  store.set_audit(settings.audit);
  for (int64_t t = n_prompt; t < sequence.n_tokens; ++t) {
    for (int64_t layer = 0; layer < m.n_layers; ++layer) {
      store.append(layer, sequence.at(layer, t, 1, q));
      store.attend(layer, q.data(), out.data());
      for (int64_t i = 0; i < m.n_heads * m.head_dim; ++i) {
        result.outputs.push_back(static_cast<float>(out[static_cast<size_t>(i)]));
      }
    }
    store.advance();
  }
  result.counters = store.selection();
  result.mass = store.audit();
  result.residual = store.residual_energy();
  return result;
}

KvSettings dense() {
  KvSettings s;
  s.kind = StoreKind::kDense;
  return s;
}

KvSettings tiered() {
  KvSettings s;
  s.kind = StoreKind::kTiered;
  s.exact_keys = true;
  s.budget = 1 << 20;
  s.prefill_budget = 64;
  s.chunk_tokens = 8;
  s.sinks = 16;
  s.recent = 40;
  s.outliers = 3;
  s.rank = 128;
  s.slots = 1;
  return s;
}

// Largest difference over the rms of the reference.
double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0, square = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_FALSE(std::isnan(a[i])) << i;
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
    square += static_cast<double>(b[i]) * b[i];
  }
  return worst / std::sqrt(square / static_cast<double>(b.size()));
}

// Outputs are stored as bf16: two results that agree in fp32 may round to neighbours, one bf16 ulp
// apart: 2^-8 of the value, and the largest of some thousand normal values is about 5 rms.
constexpr double kOneUlp = 5.0 / 256;

TEST(KvStore, EverythingSelectedEqualsDense) {
  for (int64_t n_prompt : {1, 17, 64, 65, 200, 331}) {
    const Sequence sequence(Model{}, n_prompt + 150, test::seed());
    const Outcome reference = run(sequence, dense(), n_prompt);
    for (int32_t chunk : {8, 16, 5}) {
      KvSettings settings = tiered();
      settings.chunk_tokens = chunk;
      settings.sinks = 4 * chunk;
      const Outcome result = run(sequence, settings, n_prompt);
      EXPECT_LT(relative_error(result.outputs, reference.outputs), kOneUlp)
          << "prompt " << n_prompt << " chunk " << chunk;
    }
  }
}

TEST(KvStore, LowRankOfFullRankEqualsDenseToCodecPrecision) {
  const Sequence sequence(Model{}, 420, test::seed() + 1);
  const Outcome reference = run(sequence, dense(), 350);
  KvSettings settings = tiered();
  settings.exact_keys = false;
  const Outcome result = run(sequence, settings, 350);
  // Coefficients, basis and rebuilt keys are bf16: three roundings of 2^-9 relative on keys of norm
  // about 9 against queries of norm 8, over sqrt(64): score errors near 0.03 rms, so outputs of
  // softmax-weighted normal values move by a few percent of their rms at most.
  EXPECT_LT(relative_error(result.outputs, reference.outputs), 0.15);
  for (double residual : result.residual) EXPECT_LT(residual, 1e-9);
}

TEST(KvStore, PlantedRankIsRebuilt) {
  const Sequence sequence(Model{}, 420, test::seed() + 2, 12);
  const Outcome reference = run(sequence, dense(), 350);
  KvSettings settings = tiered();
  settings.exact_keys = false;
  settings.rank = 16;
  const Outcome result = run(sequence, settings, 350);
  EXPECT_LT(relative_error(result.outputs, reference.outputs), 0.15);
  for (double residual : result.residual) EXPECT_LT(residual, 1e-4);
  // Far fewer directions than the keys have must show: the test can fail.
  settings.rank = 2;
  EXPECT_GT(relative_error(run(sequence, settings, 350).outputs, reference.outputs), 0.3);
}

TEST(KvStore, SlidingWindowLayersKeepTheirWindow) {
  Model model;
  model.window = {24, 0};
  for (int64_t n_prompt : {10, 24, 25, 200}) {
    const Sequence sequence(model, n_prompt + 120, test::seed() + 3);
    const Outcome reference = run(sequence, dense(), n_prompt);
    const Outcome result = run(sequence, tiered(), n_prompt);
    EXPECT_LT(relative_error(result.outputs, reference.outputs), kOneUlp) << n_prompt;
  }
}

TEST(KvStore, TheBudgetBoundsWhatIsFetched) {
  const Sequence sequence(Model{}, 700, test::seed() + 4);
  KvSettings settings = tiered();
  settings.budget = 64;
  for (double slots : {1.0, 2.0, 4.0}) {
    settings.slots = slots;
    const Outcome result = run(sequence, settings, 600);
    const SelectionCounters& c = result.counters;
    EXPECT_EQ(c.steps, 2 * 100);
    EXPECT_EQ(c.selected_chunks, c.steps * 2 * (64 / 8));
    EXPECT_LE(c.hit_chunks, c.selected_chunks);
    EXPECT_EQ(c.fetched_bytes, (c.selected_chunks - c.hit_chunks) * 8 * 64 * 2 * 2);
    // The size of the selection cache changes what is fetched, never the answer.
    KvSettings one = settings;
    one.slots = 1;
    EXPECT_LT(relative_error(result.outputs, run(sequence, one, 600).outputs), kOneUlp);
  }
}

TEST(KvStore, AuditOfEverythingIsOne) {
  const Sequence sequence(Model{}, 330, test::seed() + 5);
  KvSettings settings = tiered();
  settings.audit = true;
  const Outcome all = run(sequence, settings, 300);
  EXPECT_EQ(all.mass.steps(), 30);
  EXPECT_NEAR(all.mass.mean(), 1.0, 1e-5);
  settings.budget = 16;
  const Outcome some = run(sequence, settings, 300);
  EXPECT_LT(some.mass.mean(), 0.9);
  EXPECT_GT(some.mass.mean(), 0.2);
  EXPECT_LE(some.mass.percentile(0.05), some.mass.mean());
}

TEST(KvStore, SameBitsForAnyThreadCount) {
  const Sequence sequence(Model{}, 420, test::seed() + 6);
  KvSettings settings = tiered();
  settings.exact_keys = false;
  settings.rank = 40;
  settings.budget = 96;
  settings.slots = 2;
  const Outcome one = run(sequence, settings, 350, 1);
  for (int threads : {2, 3, 5}) {
    EXPECT_EQ(one.outputs, run(sequence, settings, 350, threads).outputs) << threads;
  }
}

}  // namespace
}  // namespace tiercel
