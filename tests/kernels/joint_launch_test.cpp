// Kernels of several sequences as one launch: each sequence has the bits that it has alone, in the order
// that it enqueued them.
#include "kernels/stream.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/attention_decode.h"
#include "kernels/select.h"
#include "tests/kernels/device_vector.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::stream;

constexpr int32_t kKvHeads = 2, kHeads = 6, kDim = 64, kChunk = 8;

// What a decode step enqueues for one sequence: the best k of its chunks, then attention over them and
// over a window of recent tokens.
class Sequence {
 public:
  Sequence(std::mt19937_64& rng, int64_t n_chunks, int64_t k, int64_t n_recent)
      : n_chunks_(n_chunks), k_(k), n_recent_(n_recent) {
    q_ = rows(rng, kHeads);
    landmarks_ = rows(rng, kKvHeads * n_chunks);
    home_ = rows(rng, kKvHeads * n_chunks * kChunk);
    recent_ = rows(rng, kKvHeads * n_recent);
    select_workspace_.resize(select_workspace_floats(kHeads, kKvHeads, n_chunks));
    attend_workspace_.resize(decode_workspace_floats(kHeads, kDim));
    ids.resize(kKvHeads * k);
    counts.resize(kKvHeads);
    statistics_.resize(2 * kHeads);
    out.resize(kHeads * kDim);
  }

  void clear() {
    std::fill(ids.begin(), ids.end(), -7);
    std::fill(counts.begin(), counts.end(), -7);
    std::fill(out.begin(), out.end(), std::nanf(""));
  }

  void select() {
    SelectParams p;
    p.q = q_.data();
    p.landmarks = landmarks_.data();
    p.landmark_head_stride = n_chunks_ * kDim;
    p.end_chunk = n_chunks_;
    p.k = k_;
    p.n_heads = kHeads;
    p.n_kv_heads = kKvHeads;
    p.head_dim = kDim;
    p.scale = 0.125f;
    p.ids = ids.data();
    p.counts = counts.data();
    p.workspace = select_workspace_.data();
    cuda::select_chunks(stream(), p);
  }

  // Also where counts have been filled with something else.
  void attend() {
    KvSource sources[2];
    for (KvSource& source : sources) source.token_stride = source.chunk_stride = kDim;
    sources[0].keys = sources[0].values = recent_.data();
    sources[0].head_stride = n_recent_ * kDim;
    sources[0].n_tokens = n_recent_;
    sources[1].keys = sources[1].values = home_.data();
    sources[1].head_stride = n_chunks_ * kChunk * kDim;
    sources[1].chunk_stride = kChunk * kDim;
    sources[1].chunk_tokens = kChunk;
    sources[1].ids = ids.data();
    sources[1].counts = counts.data();
    sources[1].ids_stride = k_;
    DecodeAttendParams p;
    p.q = q_.data();
    p.sources = sources;
    p.n_sources = 2;
    p.n_heads = kHeads;
    p.n_kv_heads = kKvHeads;
    p.head_dim = kDim;
    p.scale = 0.125f;
    p.out = {statistics_.data(), statistics_.data() + kHeads, out.data()};
    p.workspace = attend_workspace_.data();
    cuda::attend_decode(stream(), p);
  }

  DeviceVector<int32_t> ids, counts;
  DeviceVector<float> out;

 private:
  static DeviceVector<bf16> rows(std::mt19937_64& rng, int64_t n) {
    std::normal_distribution<float> normal;
    DeviceVector<bf16> made(n * kDim);
    for (bf16& x : made) x = bf16(normal(rng));
    return made;
  }

  int64_t n_chunks_, k_, n_recent_;
  DeviceVector<bf16> q_, landmarks_, home_, recent_;
  DeviceVector<float> select_workspace_, attend_workspace_, statistics_;
};

class JointLaunch : public testing::Test {
 protected:
  Sequence& add(int64_t n_chunks, int64_t k, int64_t n_recent) {
    sequences_.push_back(std::make_unique<Sequence>(rng_, n_chunks, k, n_recent));
    return *sequences_.back();
  }
  // Launches of a step of all sequences.
  template <typename Step>
  int64_t run(bool at_once, Step step) {
    stream().finish();
    for (auto& sequence : sequences_) sequence->clear();
    const int64_t before = stream().n_launches();
    const auto n = static_cast<int64_t>(sequences_.size());
    if (at_once) {
      together(stream(), n, [&](int64_t i) { step(*sequences_[static_cast<size_t>(i)]); });
    } else {
      for (auto& sequence : sequences_) step(*sequence);
    }
    stream().finish();
    return stream().n_launches() - before;
  }
  // The same bits apart and at once; launches of both.
  template <typename Step>
  std::pair<int64_t, int64_t> compare(Step step) {
    const int64_t apart = run(false, step);
    struct Result {
      DeviceVector<int32_t> ids, counts;
      DeviceVector<float> out;
    };
    std::vector<Result> expected;
    for (auto& s : sequences_) expected.push_back({s->ids, s->counts, s->out});
    const int64_t at_once = run(true, step);
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& s = *sequences_[i];
      EXPECT_EQ(s.ids, expected[i].ids) << "sequence " << i;
      EXPECT_EQ(s.counts, expected[i].counts) << "sequence " << i;
      EXPECT_EQ(std::memcmp(s.out.data(), expected[i].out.data(), s.out.size() * sizeof(float)), 0)
          << "sequence " << i;
      for (const float x : s.out) EXPECT_FALSE(std::isnan(x)) << "sequence " << i;
    }
    return {apart, at_once};
  }

  std::mt19937_64 rng_{test::seed()};
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

void decode(Sequence& s) {
  s.select();
  s.attend();
}

TEST_F(JointLaunch, OneLaunchServesSequencesOfEveryLength) {
  // Few chunks are scored by one block, many by several; the grids differ.
  for (const int64_t n_chunks : {40, 900, 333, 41, 3000}) add(n_chunks, 16, 20 + n_chunks / 20);
  const auto [apart, at_once] = compare(decode);
  EXPECT_EQ(apart, 5 * at_once);
  EXPECT_EQ(at_once, 3) << "scores, the best, attention";
}

TEST_F(JointLaunch, OtherKernelsAtTheSamePlaceAreLaunchesOfTheirOwn) {
  add(500, 16, 64);
  add(12, 16, 64);  // all of its chunks: listed, not scored
  add(800, 16, 64);
  add(500, 16, 3000);  // more keys than the kernel for few takes
  const auto [apart, at_once] = compare(decode);
  EXPECT_LT(at_once, apart);
  EXPECT_GT(at_once, 3);
}

TEST_F(JointLaunch, MoreSequencesThanOneLaunchTakes) {
  for (int i = 0; i < 2 * cuda::kMostTogether + 1; ++i) add(100 + i, 16, 32 + i);
  const auto [apart, at_once] = compare(decode);
  EXPECT_EQ(apart, (2 * cuda::kMostTogether + 1) * 3);
  EXPECT_EQ(at_once, 3 * 3) << "eight, eight, and one by itself";
}

// A fill comes between the kernels that were enqueued before it and those after it.
TEST_F(JointLaunch, OtherWorkComesWhereItWasEnqueued) {
  for (const int64_t n_chunks : {60, 200, 90}) add(n_chunks, 16, 40);
  compare([&](Sequence& s) {
    s.select();
    if (&s != sequences_[1].get()) {
      stream().fill_bytes(s.counts.data(), 0, static_cast<int64_t>(s.counts.size() * sizeof(int32_t)));
    }
    s.attend();
  });
  EXPECT_EQ(sequences_[0]->counts[0], 0);
  EXPECT_GT(sequences_[1]->counts[0], 0);
}

TEST_F(JointLaunch, AnErrorDropsWhatIsHeld) {
  for (const int64_t n_chunks : {60, 200}) add(n_chunks, 16, 40);
  EXPECT_THROW(run(true,
                   [&](Sequence& s) {
                     decode(s);
                     if (&s == sequences_[1].get()) throw std::runtime_error("stop");
                   }),
               std::runtime_error);
  stream().finish();
  EXPECT_EQ(sequences_[0]->counts[0], -7) << "was launched";
  compare(decode);
}

}  // namespace
}  // namespace tiercel
