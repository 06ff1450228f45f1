// A KvStore on any pair of tiers, fed with a sequence of random projections.
//
// Tiers: device(), copy(), side(), host(); Vector<T>, whose memory the device reads and writes;
// kOverlaps: the queues are several; kRoundsWeights: softmax weights are rounded to bf16;
// kEmulated: every thread of a kernel is a fiber and only small cases are affordable.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "engine/base/rope.h"
#include "engine/cpu_worker.h"
#include "offload/kv_store.h"
#include "tests/seed.h"

namespace tiercel::test {

template <typename Tiers>
using StoreOf = KvStore<typename Tiers::Device, typename Tiers::Host>;

struct Model {
  int64_t n_layers = 2;
  int32_t n_heads = 4, n_kv_heads = 2, head_dim = 64;
  std::vector<int64_t> window{0, 0};
  bool eviction_head = false;
};

inline KvShape shape_of(const Model& m) {
  return {m.n_layers, m.n_heads, m.n_kv_heads, m.head_dim, m.window, m.eviction_head};
}

inline std::vector<double> frequencies(int head_dim) {
  std::vector<double> f(static_cast<size_t>(head_dim) / 2);
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / head_dim);
  }
  return f;
}

// Random projections of a whole sequence, the same for every store. Keys share a mean and live near
// a subspace of `key_rank` directions, as keys of real models do.
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
    if (m.eviction_head) {
      delta.resize(static_cast<size_t>(m.n_layers * m.n_kv_heads * kv_width));
      a.resize(static_cast<size_t>(m.n_layers * m.n_kv_heads));
      for (bf16& x : delta) x = bf16(0.2f * normal(random));
      for (bf16& x : a) x = bf16(0.5f + std::abs(normal(random)));
    }
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

  Model model;
  int64_t n_tokens;
  std::vector<bf16> q, k, v;
  std::vector<bf16> delta, a;  // [layers][kv][kv width], [layers][kv]
};

// Tokens of a sequence where the device can read them. q is turned in place by the store, so each
// use gets a copy.
template <typename Tiers>
struct Inputs {
  typename Tiers::template Vector<bf16> q, k, v, delta, a;

  Projections at(const Sequence& s, int64_t layer, int64_t first, int64_t n) {
    const int64_t row = layer * s.n_tokens + first;
    const auto take = [&](auto& target, const std::vector<bf16>& source, int64_t width) {
      target.assign(source.begin() + row * width, source.begin() + (row + n) * width);
    };
    const int64_t kv_width = int64_t{s.model.n_kv_heads} * s.model.head_dim;
    take(q, s.q, int64_t{s.model.n_heads} * s.model.head_dim);
    take(k, s.k, kv_width);
    take(v, s.v, kv_width);
    Projections p;
    p.q = q.data();
    p.k = k.data();
    p.v = v.data();
    p.n_tokens = n;
    if (s.model.eviction_head) {
      const int64_t heads = s.model.n_kv_heads;
      const auto head = [&](auto& target, const std::vector<bf16>& source, int64_t size) {
        target.assign(source.begin() + layer * size, source.begin() + (layer + 1) * size);
      };
      head(delta, s.delta, heads * kv_width);
      head(a, s.a, heads);
      p.delta = delta.data();
      p.a = a.data();
    }
    return p;
  }
};

struct Outcome {
  std::vector<float> outputs;  // decode outputs of all layers and steps
  SelectionCounters counters;
  MassHistogram mass;
  std::vector<double> residual;
};

// The tables behind a RopeTable, copied into `tables`.
template <typename Vector>
RopeView rope_on_device(const RopeTable& table, Vector& tables) {
  const RopeView source = table.view();
  tables.assign(source.coarse_cos, source.coarse_cos + table.bytes() / sizeof(float));
  RopeView view = source;
  view.coarse_cos = tables.data();
  view.coarse_sin = tables.data() + (source.coarse_sin - source.coarse_cos);
  view.fine_cos = tables.data() + (source.fine_cos - source.coarse_cos);
  view.fine_sin = tables.data() + (source.fine_sin - source.coarse_cos);
  return view;
}

// How tokens behind the prompt are taken: so many pass through a layer together, of which all but the
// first attend what it selected, at once or one after the other.
struct Taken {
  int64_t share = 1;
  bool at_once = true;
  // The prompt is a prefix that the sequence shares with so many others, which take the same tokens in
  // reverse order beside it.
  int64_t behind_beside = -1;  // -1: it is the sequence's own
};

// Layouts, arenas and a store.
template <typename Tiers>
struct StoreWithMemory {
  StoreWithMemory(Tiers& tiers, const KvLayout& layout, KvWorkspace<typename Tiers::Device>& workspace,
                  CpuWorker& worker, RopeView rope, const StoreOf<Tiers>* prefix = nullptr)
      : device(tiers.device(), "device", sum(layout.held_bytes()) + sum(layout.prefill_bytes())),
        host(tiers.host(), "host", sum(layout.host_bytes())),
        store({tiers.device(), tiers.copy(), tiers.side(), tiers.host(), &worker}, device, host,
              workspace, layout, rope, 1.0f / std::sqrt(static_cast<float>(layout.shape.head_dim)), true,
              prefix) {
    EXPECT_EQ(sum(device.used()), sum(layout.held_bytes()) + sum(layout.prefill_bytes()))
        << "the plan and the store disagree";
    EXPECT_EQ(sum(host.used()), sum(layout.host_bytes()));
  }
  Arena<typename Tiers::Device> device;
  Arena<typename Tiers::Host> host;
  StoreOf<Tiers> store;
};

// Decodes tokens `from` .. of a sequence, `share` at a time, into outputs.
template <typename Tiers>
void decode(StoreOf<Tiers>& store, Tiers& tiers, const Sequence& sequence, int64_t from, Taken taken,
            std::vector<float>& outputs) {
  const Model& m = sequence.model;
  const int64_t width = int64_t{m.n_heads} * m.head_dim;
  const int64_t n = std::min(taken.share, sequence.n_tokens - from);
  std::vector<Inputs<Tiers>> rows(static_cast<size_t>(n));
  typename Tiers::template Vector<bf16> out(static_cast<size_t>(n * width));
  for (int64_t layer = 0; layer < m.n_layers; ++layer) {
    const auto row = [&](int64_t i) {
      return rows[static_cast<size_t>(i)].at(sequence, layer, from + i, 1);
    };
    const Projections first = row(0);
    store.append(layer, first);
    store.attend(layer, first.q, out.data());
    std::vector<typename StoreOf<Tiers>::Follower> followers;
    for (int64_t i = 1; i < n; ++i) {
      EXPECT_TRUE(store.may_follow(layer, i));
      const Projections next = row(i);
      store.append(layer, next, i, /*follows=*/true);
      followers.push_back({i, next.q, out.data() + i * width});
      if (!taken.at_once) store.attend_followers(layer, {&followers.back(), 1});
    }
    if (taken.at_once) store.attend_followers(layer, followers);
    tiers.device().finish();
    for (int64_t i = 0; i < n * width; ++i) {
      outputs.push_back(static_cast<float>(out[static_cast<size_t>(i)]));
    }
  }
  store.advance(n);
}

// The tokens behind the prompt, the last one first.
inline Sequence backwards(const Sequence& sequence, int64_t n_prompt) {
  Sequence other = sequence;
  const auto turn = [&](std::vector<bf16>& rows, int64_t width) {
    for (int64_t layer = 0; layer < sequence.model.n_layers; ++layer) {
      bf16* base = rows.data() + layer * sequence.n_tokens * width;
      for (int64_t a = n_prompt, b = sequence.n_tokens - 1; a < b; ++a, --b) {
        std::swap_ranges(base + a * width, base + (a + 1) * width, base + b * width);
      }
    }
  };
  const int64_t kv_width = int64_t{sequence.model.n_kv_heads} * sequence.model.head_dim;
  turn(other.q, int64_t{sequence.model.n_heads} * sequence.model.head_dim);
  turn(other.k, kv_width);
  turn(other.v, kv_width);
  return other;
}

template <typename Tiers>
Outcome run(const Sequence& sequence, KvSettings settings, int64_t n_prompt, int n_threads = 2,
            Taken taken = {}) {
  const Model& m = sequence.model;
  const bool shared = taken.behind_beside >= 0;
  Tiers tiers(n_threads);
  settings.capacity = shared ? n_prompt : sequence.n_tokens;
  settings.decodes = !shared;
  settings.overlap |= Tiers::kOverlaps;
  settings.reserves = Tiers::kOverlaps;
  settings.attend_places = Tiers::Device::kTogether;
  settings.prompt = n_prompt;
  const KvLayout layout(shape_of(m), settings);
  const RopeTable table(frequencies(m.head_dim), sequence.n_tokens);
  typename Tiers::template Vector<float> tables;
  const RopeView rope = rope_on_device(table, tables);
  settings.decodes = true;
  const KvLayout decoding(shape_of(m), settings);
  Arena<typename Tiers::Device> workspace_memory(tiers.device(), "workspace",
                                                 sum(decoding.workspace_bytes()));
  KvWorkspace<typename Tiers::Device> workspace(workspace_memory, decoding);
  EXPECT_EQ(sum(workspace_memory.used()), sum(decoding.workspace_bytes()));
  CpuWorker worker(n_threads, m.n_heads, m.head_dim);
  StoreWithMemory<Tiers> prompt(tiers, layout, workspace, worker, rope);

  Inputs<Tiers> inputs;
  typename Tiers::template Vector<bf16> out(static_cast<size_t>(n_prompt * m.n_heads * m.head_dim));
  for (int64_t layer = 0; layer < m.n_layers; ++layer) {
    const int64_t piece = 160;  // a multiple of every chunk size used here
    for (int64_t first = 0; first < n_prompt; first += piece) {
      const int64_t n = std::min(piece, n_prompt - first);
      const Projections projections = inputs.at(sequence, layer, first, n);
      prompt.store.append_prompt(layer, projections, first);
      prompt.store.attend_prompt(layer, projections, first, n_prompt, true, out.data());
      tiers.device().finish();
    }
    prompt.store.finish_layer(layer, n_prompt);
    tiers.device().finish();  // it looks at the newest queries
  }
  prompt.store.end_prefill(n_prompt);
  EXPECT_EQ(sum(prompt.device.used()), sum(layout.held_bytes()));

  std::vector<std::unique_ptr<StoreWithMemory<Tiers>>> behind;
  if (shared) {
    settings.prompt = 0;
    settings.behind = sequence.n_tokens - n_prompt;
    const KvLayout sharing(shape_of(m), settings);
    for (int64_t i = 0; i <= taken.behind_beside; ++i) {
      behind.push_back(std::make_unique<StoreWithMemory<Tiers>>(tiers, sharing, workspace, worker, rope,
                                                                &prompt.store));
    }
  }
  StoreOf<Tiers>& store = shared ? behind.front()->store : prompt.store;
  Outcome result;
  store.set_audit(settings.audit);
  const Sequence others = backwards(sequence, n_prompt);
  std::vector<float> unused;
  for (int64_t t = n_prompt; t < sequence.n_tokens; t += taken.share) {
    decode(store, tiers, sequence, t, taken, result.outputs);
    for (size_t i = 1; i < behind.size(); ++i) {
      decode(behind[i]->store, tiers, others, t, taken, unused);
    }
  }
  result.counters = store.selection();
  result.mass = store.audit();
  result.residual = store.residual_energy();
  return result;
}

inline KvSettings dense() {
  KvSettings s;
  s.kind = StoreKind::kDense;
  return s;
}

inline KvSettings tiered() {
  KvSettings s;
  s.kind = StoreKind::kTiered;
  s.keys = KeyForm::kExact;
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

// The largest difference, over the rms of the reference.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
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
// apart: 2^-8 of the value, and the largest of some thousand normal values is about 5 rms. A device
// that rounds softmax weights to bf16 before they meet the values deviates by 2^-9 of sum(p |v|),
// at most 5 rms too where one key has all the weight; both results do.
template <typename Tiers>
constexpr double kSameUpToRounding = (Tiers::kRoundsWeights ? 2 : 1) * 5.0 / 256;

}  // namespace tiercel::test
