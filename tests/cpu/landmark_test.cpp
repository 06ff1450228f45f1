// Landmarks and outliers at every level that this machine runs.
#include "cpu/landmark.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <bit>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/cpu/tested_isas.h"
#include "tests/oracle/decode.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

class LandmarkTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};

  std::vector<bf16> normal_rows(int64_t n, float shift = 0.0f) {
    std::normal_distribution<float> normal(shift, 1.0f);
    std::vector<bf16> rows(n);
    for (bf16& x : rows) x = bf16(normal(rng_));
    return rows;
  }
};

struct Plane {
  int32_t n_kv_heads, d, chunk;
  int64_t n_chunks;
  std::vector<bf16> keys, landmarks;

  IndexKind kind = IndexKind::kMean;

  int64_t width() const { return landmark_width(kind, d); }
  // Landmarks of all chunks behind first_landmark have room; those that are not built are 99.
  void build(Queue& queue, int64_t first, int64_t n, int64_t first_row = 0,
             int64_t first_landmark = 0) {
    landmarks.assign(n_kv_heads * (n_chunks - first_landmark) * width(), bf16(99.0f));
    LandmarkParams p;
    p.kind = kind;
    p.first_landmark = first_landmark;
    p.keys = keys.data();
    p.key_head_stride = static_cast<int64_t>(keys.size()) / n_kv_heads;
    p.first_row = first_row;
    p.landmarks = landmarks.data();
    p.landmark_head_stride = (n_chunks - first_landmark) * width();
    p.first_chunk = first;
    p.n_chunks = n;
    p.chunk_tokens = chunk;
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    cpu::build_landmarks(queue, p);
  }
};

TEST_P(LandmarkTest, MeanOfTheChunkRoundedOnce) {
  for (const int32_t d : {64, 80, 96, 128, 256, 2}) {
    for (const int32_t chunk : {1, 5, 8, 16}) {
      Plane plane{2, d, chunk, 300, normal_rows(2 * (300 * chunk - 32) * d, 0.5f), {}};
      plane.build(queue_, 40, 260, 32);  // rows behind the plane's first 32 positions
      for (int64_t j = 0; j < 2; ++j) {
        for (int64_t c = 40; c < 300; ++c) {
          for (int32_t i = 0; i < d; ++i) {
            double sum = 0, magnitude = 0;
            for (int32_t t = 0; t < chunk; ++t) {
              const int64_t row = c * chunk + t - 32;
              const double x = static_cast<float>(
                  plane.keys[j * static_cast<int64_t>(plane.keys.size()) / 2 + row * d + i]);
              sum += x;
              magnitude += std::abs(x);
            }
            const double mean = sum / chunk;
            ASSERT_NEAR(static_cast<float>(plane.landmarks[(j * 300 + c) * d + i]), mean,
                        std::abs(mean) * 0x1.01p-8 + chunk * test::kUnit * magnitude / chunk);
          }
        }
      }
    }
  }
}

// Exact, whatever the sign of zero; a NaN makes both NaN, infinities are values.
TEST_P(LandmarkTest, LeastAndGreatestOfTheChunk) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float odd[] = {inf, -inf, nan, -nan, 0.0f, -0.0f, 1e-40f, -1e-40f};
  for (const int32_t d : {32, 64, 80, 96, 128, 256, 2}) {
    for (const int32_t chunk : {1, 5, 8, 16}) {
      for (const int64_t first_landmark : {0, 33}) {
        const int64_t rows = 300 * chunk - 32, left = 300 - first_landmark;
        Plane plane{2, d, chunk, 300, normal_rows(2 * rows * d, 0.5f), {}, IndexKind::kMinMax};
        for (int i = 0; i < 500; ++i) plane.keys[rng_() % plane.keys.size()] = bf16(odd[i % 8]);
        for (int64_t i = 0; i < chunk * d; ++i) {  // a chunk of zeros of both signs
          plane.keys[(200 * chunk - 32) * d + i] = bf16(rng_() % 2 == 0 ? 0.0f : -0.0f);
        }
        plane.build(queue_, 40, 255, 32, first_landmark);
        for (int64_t j = 0; j < 2; ++j) {
          for (int64_t c = first_landmark; c < 300; ++c) {
            const bf16* got = plane.landmarks.data() + (j * left + c - first_landmark) * 2 * d;
            for (int32_t i = 0; i < d; ++i) {
              const float least = static_cast<float>(got[i]);
              const float greatest = static_cast<float>(got[d + i]);
              if (c < 40 || c >= 295) {
                ASSERT_EQ(least + greatest, 198.0f) << "not asked for";
                continue;
              }
              float low = inf, high = -inf;
              bool has_nan = false;
              for (int32_t t = 0; t < chunk; ++t) {
                const auto x =
                    static_cast<float>(plane.keys[(j * rows + c * chunk + t - 32) * d + i]);
                low = std::min(low, x);
                high = std::max(high, x);
                has_nan = has_nan || std::isnan(x);
              }
              ASSERT_EQ(std::isnan(least), has_nan);
              ASSERT_EQ(std::isnan(greatest), has_nan);
              ASSERT_TRUE(has_nan || (least == low && greatest == high)) << "chunk " << c;
            }
          }
        }
        Plane other = plane;
        for (const int threads : {1, 3, 5}) {
          Queue portable({.n_threads = threads, .isa = Isa::kPortable});
          other.build(portable, 40, 255, 32, first_landmark);
          ASSERT_EQ(plane.landmarks, other.landmarks) << "every level, any threads: the same bits";
        }
      }
    }
  }
}

TEST_P(LandmarkTest, MeansBehindTheFirstLandmark) {
  Plane whole{2, 96, 8, 300, normal_rows(2 * 300 * 8 * 96), {}};
  Plane part = whole;
  whole.build(queue_, 0, 300);
  part.build(queue_, 120, 180, 0, 100);
  for (int64_t j = 0; j < 2; ++j) {
    for (int64_t c = 100; c < 300; ++c) {
      for (int64_t i = 0; i < 96; ++i) {
        const bf16 expected = c < 120 ? bf16(99.0f) : whole.landmarks[(j * 300 + c) * 96 + i];
        ASSERT_EQ(part.landmarks[(j * 200 + c - 100) * 96 + i], expected);
      }
    }
  }
}

// Codes by their definition, and what they are for: |x - code scale| <= scale / 2, bounds stay
// bounds. (With u = 2^-24: the quotient is rounded once, so both hold up to u |x|.)
TEST_P(LandmarkTest, CodesOfLandmarks) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const IndexKind kind : {IndexKind::kMean, IndexKind::kMinMax}) {
    for (const int32_t width : {16, 32, 96, 128, 160, 256, 512}) {
      for (const int64_t first_landmark : {0, 21}) {
        const int64_t first = 50, n = 400, capacity = 600, left = capacity - first_landmark;
        auto rows = normal_rows(2 * left * width, 0.3f);
        const auto row_of = [&](int64_t j, int64_t c) {
          return rows.data() + (j * left + c - first_landmark) * width;
        };
        for (int64_t i = 0; i < width; ++i) {
          row_of(0, 60)[i] = bf16(i % 2 == 0 ? 0.0f : -0.0f);
          row_of(1, 61)[i] = bf16(normal_rows(1)[0].bits % 100 * 1e-40f);  // denormals
          row_of(1, 62)[i] = bf16(static_cast<float>(row_of(1, 62)[i]) * 0x1p125f);
          row_of(0, 63)[i] = bf16(-2.5f);
        }
        row_of(0, 64)[rng_() % width] = bf16(inf);
        row_of(1, 64)[rng_() % width] = bf16(-inf);
        row_of(0, 65)[rng_() % width] = bf16(nan);
        std::vector<int8_t> codes(2 * capacity * width, 88), other(codes);
        std::vector<float> scales(2 * capacity, 77.0f), other_scales(scales);
        EncodeLandmarksParams p;
        p.landmarks = rows.data();
        p.landmark_head_stride = left * width;
        p.first_landmark = first_landmark;
        p.first_chunk = first;
        p.n_chunks = n;
        p.n_kv_heads = 2;
        p.width = width;
        p.kind = kind;
        p.codes = codes.data();
        p.scales = scales.data();
        p.capacity = capacity;
        cpu::encode_landmarks(queue_, p);
        for (int64_t j = 0; j < 2; ++j) {
          for (int64_t c = 0; c < capacity; ++c) {
            const float scale = scales[j * capacity + c];
            const int8_t* code = codes.data() + (j * capacity + c) * width;
            if (c < first || c >= first + n) {
              ASSERT_EQ(scale, 77.0f);
              for (int32_t i = 0; i < width; ++i) ASSERT_EQ(code[i], 88);
              continue;
            }
            float largest = 0;
            bool finite = true;
            for (int32_t i = 0; i < width; ++i) {
              const float x = static_cast<float>(row_of(j, c)[i]);
              finite = finite && std::isfinite(x);
              largest = std::max(largest, std::abs(x));
            }
            if (!finite || largest == 0) {
              ASSERT_TRUE(finite ? scale == 0 && !std::signbit(scale) : std::isnan(scale));
              for (int32_t i = 0; i < width; ++i) ASSERT_EQ(code[i], 0);
              continue;
            }
            ASSERT_EQ(scale, largest * (1 + 0x1p-20f) / 127.0f);
            for (int32_t i = 0; i < width; ++i) {
              const float x = static_cast<float>(row_of(j, c)[i]), q = x / scale;
              const float rounded = kind == IndexKind::kMean ? std::nearbyint(q)
                                    : i < width / 2          ? std::floor(q)
                                                             : std::ceil(q);
              ASSERT_EQ(code[i], static_cast<int>(std::clamp(rounded, -127.0f, 127.0f)));
              // Below 2^-126 the scale has few bits: the ends are cut.
              if (largest < 0x1p-100f) continue;
              const double value = double{scale} * code[i], slack = test::kUnit * std::abs(x);
              if (kind == IndexKind::kMean) {
                ASSERT_LE(std::abs(value - x), scale / 2 + slack);
              } else if (i < width / 2) {
                ASSERT_TRUE(value <= x + slack && value > x - scale - slack);
              } else {
                ASSERT_TRUE(value >= x - slack && value < x + scale + slack);
              }
            }
          }
        }
        p.codes = other.data();
        p.scales = other_scales.data();
        for (const int threads : {1, 3, 5}) {
          Queue portable({.n_threads = threads, .isa = Isa::kPortable});
          std::fill(other.begin(), other.end(), int8_t{88});
          cpu::encode_landmarks(portable, p);
          ASSERT_EQ(codes, other) << "every level, any threads: the same bits";
          for (size_t i = 0; i < scales.size(); ++i) {
            ASSERT_EQ(std::bit_cast<uint32_t>(scales[i]), std::bit_cast<uint32_t>(other_scales[i]));
          }
        }
      }
    }
  }
}

TEST_P(LandmarkTest, EveryLevelGivesTheSameBits) {
  Plane a{2, 80, 8, 500, normal_rows(2 * 500 * 8 * 80), {}};
  a.keys[1234] = bf16(std::numeric_limits<float>::quiet_NaN());
  a.keys[99999] = bf16(std::numeric_limits<float>::infinity());
  Plane b = a;
  a.build(queue_, 0, 500);
  Queue portable({.n_threads = 1, .isa = Isa::kPortable});
  b.build(portable, 0, 500);
  EXPECT_EQ(a.landmarks, b.landmarks);
  EXPECT_TRUE(std::isnan(static_cast<float>(a.landmarks[1234 / 640 * 80 + 1234 % 80])));

  std::vector<int32_t> ids[2];
  for (const int i : {0, 1}) {
    std::vector<float> cosines(2 * 500);
    std::vector<uint64_t> excluded(2 * 8);
    ids[i].resize(2 * 20);
    OutlierParams p;
    p.keys = a.keys.data();
    p.key_head_stride = 500 * 8 * 80;
    p.landmarks = a.landmarks.data();
    p.landmark_head_stride = 500 * 80;
    p.end_chunk = 500;
    p.n_outliers = 20;
    p.chunk_tokens = 8;
    p.n_kv_heads = 2;
    p.head_dim = 80;
    p.ids = ids[i].data();
    p.excluded = excluded.data();
    p.excluded_stride = 8;
    p.workspace = cosines.data();
    cpu::find_outliers(i == 0 ? queue_ : portable, p);
  }
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_EQ(ids[0][0], 1234 / 640) << "the chunk with the NaN comes first";
}

TEST_P(LandmarkTest, OutliersAreTheLowestCosines) {
  for (const int32_t d : {64, 80, 128}) {
    for (const int64_t n_outliers : {int64_t{0}, int64_t{1}, int64_t{37}, int64_t{283}}) {
      const int64_t first = 17, n_chunks = 300, n = n_chunks - first;
      Plane plane{2, d, 8, n_chunks, normal_rows(2 * n_chunks * 8 * d, 1.0f), {}};
      for (int64_t i = 0; i < 8 * d; ++i) plane.keys[200 * 8 * d + i] = bf16(0.0f);  // cosine 0
      plane.build(queue_, 0, n_chunks);
      std::vector<float> cosines(2 * n);
      std::vector<int32_t> ids(2 * n_outliers);
      std::vector<uint64_t> excluded(2 * 8, 0);
      excluded[0] = 3;  // bits that are already there stay
      OutlierParams p;
      p.keys = plane.keys.data();
      p.key_head_stride = n_chunks * 8 * d;
      p.landmarks = plane.landmarks.data();
      p.landmark_head_stride = n_chunks * d;
      p.first_chunk = first;
      p.end_chunk = n_chunks;
      p.n_outliers = n_outliers;
      p.chunk_tokens = 8;
      p.n_kv_heads = 2;
      p.head_dim = d;
      p.ids = ids.data();
      p.excluded = excluded.data();
      p.excluded_stride = 8;
      p.workspace = cosines.data();
      cpu::find_outliers(queue_, p);

      for (int64_t j = 0; j < 2; ++j) {
        std::vector<double> expected;
        for (int64_t c = first; c < n_chunks; ++c) {
          double lowest = 2;
          for (int64_t t = 0; t < 8; ++t) {
            double dot = 0, ll = 0, kk = 0;
            for (int32_t i = 0; i < d; ++i) {
              const double l = static_cast<float>(plane.landmarks[(j * n_chunks + c) * d + i]);
              const double k = static_cast<float>(plane.keys[((j * n_chunks + c) * 8 + t) * d + i]);
              dot += l * k, ll += l * l, kk += k * k;
            }
            lowest = std::min(lowest, ll * kk == 0 ? 0 : dot / std::sqrt(ll * kk));
          }
          expected.push_back(lowest);
        }
        // Cauchy-Schwarz: each of the three sums is within (d + 2) u of the norms' product.
        const double tolerance = 3 * (d + 4) * test::kUnit;
        double highest = -2, lowest_left = 2;
        int64_t at = 0;
        for (int64_t c = 0; c < n; ++c) {
          const int64_t chunk = first + c;
          const bool is_outlier = at < n_outliers && ids[j * n_outliers + at] == chunk;
          at += is_outlier;
          const bool initial = j == 0 && chunk < 2;
          ASSERT_EQ(excluded[j * 8 + chunk / 64] >> (chunk % 64) & 1, is_outlier || initial);
          double& side = is_outlier ? highest : lowest_left;
          side = is_outlier ? std::max(side, expected[c]) : std::min(side, expected[c]);
        }
        ASSERT_EQ(at, n_outliers) << "ids ascend and are in range";
        ASSERT_LE(highest, lowest_left + 2 * tolerance);
      }
      ASSERT_EQ(excluded[0] & 3, 3u);
    }
  }
}

// Chunks that come a few at a time leave what find_outliers finds among all of them, with their rows;
// another layer copies the same chunks of its own.
TEST_P(LandmarkTest, LateOutliersAreTheSame) {
  const int32_t d = 80, chunk = 5;
  const int64_t first = 17, n_chunks = 200;
  for (const int64_t n_most : {int64_t{1}, int64_t{7}, int64_t{190}}) {
    SCOPED_TRACE(n_most);
    Plane plane{2, d, chunk, n_chunks, normal_rows(2 * n_chunks * chunk * d, 1.0f), {}};
    plane.build(queue_, 0, n_chunks);
    const auto values = normal_rows(2 * n_chunks * chunk * d, 1.0f);
    std::vector<int32_t> ids(2 * n_most);
    std::vector<float> cosines(2 * n_most);
    std::vector<uint64_t> excluded(2 * 4, 0);
    const int64_t rows = 2 * n_most * chunk * d;
    std::vector<bf16> keys(rows), kept_values(rows), other_keys(rows), other_values(rows);
    LateOutlierParams p;
    p.keys = plane.keys.data();
    p.values = values.data();
    p.head_stride = n_chunks * chunk * d;
    p.landmarks = plane.landmarks.data();
    p.landmark_head_stride = n_chunks * d;
    p.chunk_tokens = chunk;
    p.n_kv_heads = 2;
    p.head_dim = d;
    p.n_most = n_most;
    p.ids = ids.data();
    p.cosines = cosines.data();
    p.excluded = excluded.data();
    p.excluded_stride = 4;
    for (int64_t at = first; at < n_chunks; at += p.n_chunks) {
      p.first_chunk = at;
      p.n_chunks = std::min<int64_t>(n_chunks - at, 1 + at % 4);
      p.n_kept = std::min(at - first, n_most);
      p.choose = true;
      p.kept_keys = keys.data();
      p.kept_values = kept_values.data();
      cpu::keep_late_outliers(queue_, p);
      p.choose = false;  // the other way round: values for keys
      std::swap(p.keys, p.values);
      p.kept_keys = other_keys.data();
      p.kept_values = other_values.data();
      cpu::keep_late_outliers(queue_, p);
      std::swap(p.keys, p.values);
    }
    const int64_t n = std::min(n_most, n_chunks - first);
    OutlierParams all;
    std::vector<int32_t> expected(2 * n);
    std::vector<uint64_t> bits(2 * 4, 0);
    std::vector<float> workspace(2 * (n_chunks - first));
    all.keys = p.keys;
    all.key_head_stride = p.head_stride;
    all.landmarks = p.landmarks;
    all.landmark_head_stride = p.landmark_head_stride;
    all.first_chunk = first;
    all.end_chunk = n_chunks;
    all.n_outliers = n;
    all.chunk_tokens = chunk;
    all.n_kv_heads = 2;
    all.head_dim = d;
    all.ids = expected.data();
    all.excluded = bits.data();
    all.excluded_stride = 4;
    all.workspace = workspace.data();
    cpu::find_outliers(queue_, all);
    EXPECT_EQ(excluded, bits);
    const auto same_rows = [&](const std::vector<bf16>& kept, const bf16* plane_rows, int64_t to,
                               int64_t from) {
      return std::memcmp(kept.data() + to, plane_rows + from, sizeof(bf16) * chunk * d) == 0;
    };
    for (int64_t j = 0; j < 2; ++j) {
      std::vector<int32_t> found(ids.begin() + j * n_most, ids.begin() + j * n_most + n);
      std::sort(found.begin(), found.end());
      ASSERT_TRUE(std::equal(found.begin(), found.end(), expected.begin() + j * n));
      for (int64_t i = 0; i < n; ++i) {
        const int64_t id = ids[j * n_most + i], to = (j * n_most + i) * chunk * d;
        const int64_t from = (j * n_chunks + id) * chunk * d;
        ASSERT_EQ(cosines[j * n_most + i], workspace[j * (n_chunks - first) + id - first]);
        ASSERT_TRUE(same_rows(keys, p.keys, to, from) && same_rows(kept_values, p.values, to, from));
        ASSERT_TRUE(same_rows(other_keys, p.values, to, from) &&
                    same_rows(other_values, p.keys, to, from));
      }
    }
  }
}

// All chunks alike but the last: it drives out the highest of the equal ones.
TEST_P(LandmarkTest, TiesGoToTheLowerChunk) {
  std::vector<bf16> keys(100 * 8 * 64, bf16(1.0f));
  keys[99 * 8 * 64] = bf16(-20.0f);
  Plane plane{1, 64, 8, 100, keys, {}};
  plane.build(queue_, 0, 100);
  std::vector<float> cosines(100);
  std::vector<int32_t> ids(10);
  std::vector<uint64_t> excluded(2);
  OutlierParams p;
  p.keys = plane.keys.data();
  p.landmarks = plane.landmarks.data();
  p.first_chunk = 4;
  p.end_chunk = 100;
  p.n_outliers = 10;
  p.chunk_tokens = 8;
  p.n_kv_heads = 1;
  p.head_dim = 64;
  p.ids = ids.data();
  p.excluded = excluded.data();
  p.excluded_stride = 2;
  p.workspace = cosines.data();
  cpu::find_outliers(queue_, p);
  for (int32_t i = 0; i < 9; ++i) EXPECT_EQ(ids[i], 4 + i);
  EXPECT_EQ(ids[9], 99);
  EXPECT_EQ(excluded[0], uint64_t{0x1ff} << 4);
  EXPECT_EQ(excluded[1], uint64_t{1} << (99 - 64));
}

TEST_P(LandmarkTest, OffsetsBeyondTwoToThe31) {
  const int32_t d = 128, chunk = 8;
  const int64_t far_chunk = 3'000'000, n = 50;
  const size_t key_bytes = (far_chunk + n) * chunk * d * sizeof(bf16);
  const size_t landmark_bytes = key_bytes / chunk;
  const auto reserve = [](size_t bytes) {
    return static_cast<bf16*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  };
  bf16* keys = reserve(key_bytes);
  bf16* landmarks = reserve(landmark_bytes);
  ASSERT_NE(static_cast<void*>(keys), MAP_FAILED);
  ASSERT_NE(static_cast<void*>(landmarks), MAP_FAILED);
  for (int64_t i = 0; i < n * chunk * d; ++i) {
    keys[far_chunk * chunk * d + i] = bf16(static_cast<float>(i / (chunk * d)));
  }
  LandmarkParams p;
  p.keys = keys;
  p.landmarks = landmarks;
  p.first_chunk = far_chunk;
  p.n_chunks = n;
  p.chunk_tokens = chunk;
  p.n_kv_heads = 1;
  p.head_dim = d;
  cpu::build_landmarks(queue_, p);
  for (int64_t c = 0; c < n; ++c) {
    ASSERT_EQ(static_cast<float>(landmarks[(far_chunk + c) * d + 77]), static_cast<float>(c));
  }
  munmap(keys, key_bytes);
  munmap(landmarks, landmark_bytes);
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, LandmarkTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
