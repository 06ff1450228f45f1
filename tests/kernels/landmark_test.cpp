// Landmarks and outliers against cpu::, to the bit, and against fp64.
#include "kernels/landmark.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "cpu/landmark.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/decode.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

class CudaLandmark : public testing::Test {
 protected:
  std::mt19937_64 rng_{test::seed()};

  Memory<bf16> normal_rows(int64_t n, float shift = 0.0f) {
    std::normal_distribution<float> normal(shift, 1.0f);
    Memory<bf16> rows(n);
    for (bf16& x : rows) x = bf16(normal(rng_));
    return rows;
  }
};

bool same(bf16 a, bf16 b) {
  const float x = static_cast<float>(a), y = static_cast<float>(b);
  return a == b || (std::isnan(x) && std::isnan(y));
}

struct Plane {
  int32_t n_kv_heads, d, chunk;
  int64_t n_chunks;
  Memory<bf16> keys, landmarks;
  IndexKind kind = IndexKind::kMean;
  int64_t first_landmark = 0;

  LandmarkParams params(int64_t first, int64_t n, int64_t first_row) {
    const int32_t width = landmark_width(kind, d);
    landmarks.assign(n_kv_heads * n_chunks * width, bf16::from_bits(0x7fc1));
    LandmarkParams p;
    p.kind = kind;
    p.first_landmark = first_landmark;
    p.keys = keys.data();
    p.key_head_stride = static_cast<int64_t>(keys.size()) / n_kv_heads;
    p.first_row = first_row;
    p.landmarks = landmarks.data();
    p.landmark_head_stride = n_chunks * width;
    p.first_chunk = first;
    p.n_chunks = n;
    p.chunk_tokens = chunk;
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    return p;
  }
  void build(int64_t first, int64_t n, int64_t first_row = 0) {
    cuda::build_landmarks(test::stream(), params(first, n, first_row));
    test::stream().finish();
  }
};

TEST_F(CudaLandmark, SameBitsAsTheCpu) {
  for (const int32_t d : {2, 16, 34, 64, 80, 96, 128, 256}) {
    for (const int32_t chunk : {1, 5, 8, 19}) {
      Plane a{2, d, chunk, 60, normal_rows(2 * (60 * chunk - 32) * d, 0.5f), {}};
      a.keys[3 * d] = bf16(std::numeric_limits<float>::infinity());
      a.keys[5 * d + 1] = bf16(std::numeric_limits<float>::quiet_NaN());
      Plane b = a;
      const int64_t first = (32 + chunk - 1) / chunk;
      a.build(first, 57 - first, 32);  // rows behind the plane's first 32 positions
      cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
      cpu::build_landmarks(queue, b.params(first, 57 - first, 32));
      for (size_t i = 0; i < a.landmarks.size(); ++i) {
        ASSERT_TRUE(same(a.landmarks[i], b.landmarks[i])) << "d " << d << " at " << i;
      }
      // The cpu's own test bounds it in fp64; that nothing else was written shows here.
      const bf16 poison = bf16::from_bits(0x7fc1);
      for (int64_t i = 0; i < first * d; ++i) ASSERT_EQ(a.landmarks[i], poison);
      for (int64_t i = 57 * d; i < 60 * d; ++i) ASSERT_EQ(a.landmarks[i], poison);
    }
  }
}

// Least and greatest keys are exact: to the bit what the definition says, and what cpu:: makes.
TEST_F(CudaLandmark, ExtremesOfChunks) {
  for (const int32_t d : {2, 34, 64, 80, 128, 256}) {
    for (const int32_t chunk : {1, 5, 16}) {
      Plane a{2, d, chunk, 60, normal_rows(2 * (60 * chunk - 32) * d), {}};
      for (int64_t i = 0; i < 40; ++i) a.keys[rng_() % a.keys.size()].bits = rng_() % 2 * 0x8000;
      a.keys[3 * d] = bf16(std::numeric_limits<float>::infinity());
      a.keys[5 * d + 1] = bf16(std::numeric_limits<float>::quiet_NaN());
      a.kind = IndexKind::kMinMax;
      a.first_landmark = 5;
      Plane b = a;
      const int64_t first = std::max<int64_t>((32 + chunk - 1) / chunk, 7), n = 58 - first;
      a.build(first, n, 32);
      cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
      cpu::build_landmarks(queue, b.params(first, n, 32));
      ASSERT_TRUE(a.landmarks == b.landmarks) << "d " << d << " chunk " << chunk;
      const int64_t head_keys = static_cast<int64_t>(a.keys.size()) / 2;
      for (int64_t j = 0; j < 2; ++j) {
        for (int64_t c = 0; c < 60; ++c) {
          const bf16* landmark = a.landmarks.data() + (j * 60 + c) * 2 * d;
          for (int32_t i = 0; i < d; ++i) {
            if (c + 5 < first || c + 5 >= first + n) {
              ASSERT_TRUE(landmark[i].bits == 0x7fc1 && landmark[d + i].bits == 0x7fc1);
              continue;
            }
            float least = 1e30f, greatest = -1e30f;
            bool is_nan = false;
            for (int64_t t = 0; t < chunk; ++t) {
              const float x =
                  static_cast<float>(a.keys[j * head_keys + ((c + 5) * chunk + t - 32) * d + i]);
              least = t == 0 || x < least ? x : least;
              greatest = t == 0 || x > greatest ? x : greatest;
              is_nan = is_nan || std::isnan(x);
            }
            const float low = static_cast<float>(landmark[i]);
            const float high = static_cast<float>(landmark[d + i]);
            ASSERT_TRUE(is_nan ? std::isnan(low) && std::isnan(high)
                               : low == least && high == greatest);
          }
        }
      }
    }
  }
}

struct Codes {
  Memory<int8_t> codes;
  Memory<float> scales;

  EncodeLandmarksParams params(const Plane& plane, int64_t first, int64_t n, int64_t capacity) {
    const int32_t width = landmark_width(plane.kind, plane.d);
    codes.assign(plane.n_kv_heads * capacity * width, 99);
    scales.assign(plane.n_kv_heads * capacity, -7.0f);
    EncodeLandmarksParams p;
    p.landmarks = plane.landmarks.data();
    p.landmark_head_stride = plane.n_chunks * width;
    p.first_landmark = plane.first_landmark;
    p.first_chunk = first;
    p.n_chunks = n;
    p.n_kv_heads = plane.n_kv_heads;
    p.width = width;
    p.kind = plane.kind;
    p.codes = codes.data();
    p.scales = scales.data();
    p.capacity = capacity;
    return p;
  }
};

TEST_F(CudaLandmark, CodesByTheirDefinition) {
  for (const IndexKind kind : {IndexKind::kMean, IndexKind::kMinMax}) {
    for (const int32_t d : {2, 34, 64, 80, 128, 256}) {
      Plane plane{2, d, 4, 40, normal_rows(2 * 45 * 4 * d, 0.3f), {}, kind, 5};
      for (int64_t i = 0; i < 4 * d; ++i) plane.keys[9 * 4 * d + i] = bf16(0.0f);
      for (int64_t i = 0; i < 4 * d; ++i) plane.keys[12 * 4 * d + i].bits = 1;  // denormal
      plane.keys[20 * 4 * d + 1] = bf16(std::numeric_limits<float>::infinity());
      plane.keys[22 * 4 * d + 1] = bf16(std::numeric_limits<float>::quiet_NaN());
      plane.build(5, 40);
      Codes a, b;
      cuda::encode_landmarks(test::stream(), a.params(plane, 8, 35, 50));
      test::stream().finish();
      cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
      cpu::encode_landmarks(queue, b.params(plane, 8, 35, 50));
      ASSERT_TRUE(a.codes == b.codes) << "d " << d;
      const int32_t width = landmark_width(kind, d);
      for (int64_t j = 0; j < 2; ++j) {
        for (int64_t c = 0; c < 50; ++c) {
          const float scale = a.scales[j * 50 + c];
          const int8_t* codes = a.codes.data() + (j * 50 + c) * width;
          if (c < 8 || c >= 43) {
            ASSERT_EQ(scale, -7.0f);
            for (int32_t i = 0; i < width; ++i) ASSERT_EQ(codes[i], 99);
            continue;
          }
          const bf16* landmark = plane.landmarks.data() + (j * 40 + c - 5) * width;
          float largest = 0;
          bool is_finite = true;
          for (int32_t i = 0; i < width; ++i) {
            largest = std::max(largest, std::abs(static_cast<float>(landmark[i])));
            is_finite = is_finite && std::isfinite(static_cast<float>(landmark[i]));
          }
          const float want = largest * (1 + 0x1p-20f) / 127.0f;
          ASSERT_TRUE(is_finite ? scale == want : std::isnan(scale));
          for (int32_t i = 0; i < width; ++i) {
            const float x = static_cast<float>(landmark[i]);
            const double decoded = double{scale} * codes[i];
            if (!is_finite || scale == 0) {
              ASSERT_EQ(codes[i], 0);
            } else if (kind == IndexKind::kMean) {  // the quotient is rounded once, too
              ASSERT_LE(std::abs(decoded - x), scale * (0.5 + 127 * 0x1p-23));
            } else {  // bounds, but for the quotient's rounding; denormal scales are not exact
              const double over = i < d ? decoded - x : x - decoded;
              ASSERT_LE(over, std::abs(x) * 0x1p-23 + (scale < 0x1p-120f ? largest : 0));
              ASSERT_LE(-over, scale * 1.0001 + (scale < 0x1p-120f ? largest : 0));
            }
          }
        }
      }
    }
  }
}

struct Outliers {
  Memory<int32_t> ids;
  Memory<uint64_t> excluded;
  Memory<float> cosines;
  OutlierParams p;

  Outliers(Plane& plane, int64_t first, int64_t end, int64_t n) {
    ids.assign(plane.n_kv_heads * n, -7);
    p.excluded_stride = (plane.n_chunks + 63) / 64;
    excluded.assign(plane.n_kv_heads * p.excluded_stride, 0);
    cosines.assign(plane.n_kv_heads * (end - first), std::numeric_limits<float>::quiet_NaN());
    p.keys = plane.keys.data();
    p.key_head_stride = static_cast<int64_t>(plane.keys.size()) / plane.n_kv_heads;
    p.landmarks = plane.landmarks.data();
    p.landmark_head_stride = plane.n_chunks * plane.d;
    p.first_chunk = first;
    p.end_chunk = end;
    p.n_outliers = n;
    p.chunk_tokens = plane.chunk;
    p.n_kv_heads = plane.n_kv_heads;
    p.head_dim = plane.d;
    p.ids = ids.data();
    p.excluded = excluded.data();
    p.workspace = cosines.data();
  }
  void run() {
    cuda::find_outliers(test::stream(), p);
    test::stream().finish();
  }
};

TEST_F(CudaLandmark, OutliersOfTheCpu) {
  for (const int32_t d : {16, 34, 64, 80, 128, 256}) {
    for (const int64_t n_outliers : {0, 1, 37, 283}) {
      const int32_t chunk = d == 80 ? 5 : 8;
      Plane plane{2, d, chunk, 300, normal_rows(2 * 300 * chunk * d, 1.0f), {}};
      for (int64_t i = 0; i < chunk * d; ++i) plane.keys[200 * chunk * d + i] = bf16(0.0f);
      plane.keys[123 * chunk * d + 3] = bf16(std::numeric_limits<float>::quiet_NaN());
      plane.keys[(300 + 77) * chunk * d] = bf16(std::numeric_limits<float>::infinity());
      plane.build(0, 300);
      Outliers a(plane, 17, 300, n_outliers), b(plane, 17, 300, n_outliers);
      a.excluded[0] = b.excluded[0] = 3;  // bits that are already there stay
      a.run();
      cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
      cpu::find_outliers(queue, b.p);
      ASSERT_EQ(a.ids, b.ids) << "d " << d << " n " << n_outliers;
      ASSERT_EQ(a.excluded, b.excluded);
      if (n_outliers == 0) continue;
      for (size_t i = 0; i < a.cosines.size(); ++i) {
        ASSERT_EQ(a.cosines[i], std::min(-b.cosines[i], std::numeric_limits<float>::infinity()));
      }
    }
  }
}

struct LateOutliers {
  Memory<int32_t> ids;
  Memory<float> cosines;
  Memory<uint64_t> excluded;
  Memory<bf16> keys, values;
  LateOutlierParams p;

  LateOutliers(const Plane& plane, const Memory<bf16>& rows, int64_t n_most)
      : ids(plane.n_kv_heads * n_most, -7),
        cosines(plane.n_kv_heads * n_most, 7.0f),
        excluded(plane.n_kv_heads * ((plane.n_chunks + 63) / 64), 0),
        keys(plane.n_kv_heads * n_most * plane.chunk * plane.d),
        values(keys.size()) {
    p.keys = plane.keys.data();
    p.values = rows.data();
    p.head_stride = static_cast<int64_t>(plane.keys.size()) / plane.n_kv_heads;
    p.landmarks = plane.landmarks.data();
    p.landmark_head_stride = plane.n_chunks * plane.d;
    p.chunk_tokens = plane.chunk;
    p.n_kv_heads = plane.n_kv_heads;
    p.head_dim = plane.d;
    p.n_most = n_most;
    p.ids = ids.data();
    p.cosines = cosines.data();
    p.excluded = excluded.data();
    p.excluded_stride = (plane.n_chunks + 63) / 64;
    p.kept_keys = keys.data();
    p.kept_values = values.data();
  }
  // The next chunks, then what another layer does: a copy of the same ones.
  void next(int64_t first, int64_t n, int64_t n_kept, const std::function<void()>& run) {
    p.first_chunk = first;
    p.n_chunks = n;
    p.n_kept = n_kept;
    p.choose = true;
    run();
    p.choose = false;
    run();
  }
  bool operator==(const LateOutliers& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(ids, other.ids) && same(cosines, other.cosines) &&
           same(excluded, other.excluded) && same(keys, other.keys) && same(values, other.values);
  }
};

TEST_F(CudaLandmark, LateOutliersOfTheCpu) {
  cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
  for (const int32_t d : {34, 64, 128}) {
    for (const int64_t n_most : {1, 5, 33, 100}) {
      const int32_t chunk = d == 64 ? 8 : 5;
      const int64_t n_chunks = 90;
      Plane plane{2, d, chunk, n_chunks, normal_rows(2 * n_chunks * chunk * d, 1.0f), {}};
      plane.keys[60 * chunk * d + 3] = bf16(std::numeric_limits<float>::quiet_NaN());
      plane.build(0, n_chunks);
      const Memory<bf16> values = normal_rows(2 * n_chunks * chunk * d, 1.0f);
      LateOutliers a(plane, values, n_most), b(plane, values, n_most);
      int64_t n = 0;
      for (int64_t at = 9; at < n_chunks; at += n) {
        n = std::min<int64_t>(n_chunks - at, 1 + at % 8);
        const int64_t n_kept = std::min(at - 9, n_most);
        a.next(at, n, n_kept, [&] { cuda::keep_late_outliers(test::stream(), a.p); });
        test::stream().finish();
        b.next(at, n, n_kept, [&] { cpu::keep_late_outliers(queue, b.p); });
        ASSERT_TRUE(a == b) << "d " << d << " n " << n_most << " chunk " << at;
      }
    }
  }
}

TEST_F(CudaLandmark, OutliersAreTheLowestCosines) {
  const int32_t d = 64;
  const int64_t first = 17, n_chunks = 300, n_outliers = 40;
  Plane plane{2, d, 8, n_chunks, normal_rows(2 * n_chunks * 8 * d, 1.0f), {}};
  plane.build(0, n_chunks);
  Outliers o(plane, first, n_chunks, n_outliers);
  o.run();
  // Cauchy-Schwarz: each of the three sums is within (d + 2) u of the norms' product.
  const double tolerance = 3 * (d + 4) * test::kUnit;
  for (int64_t j = 0; j < 2; ++j) {
    double highest = -2, lowest_left = 2;
    int64_t at = 0;
    for (int64_t c = first; c < n_chunks; ++c) {
      double lowest = 2;
      for (int64_t t = 0; t < 8; ++t) {
        double dot = 0, ll = 0, kk = 0;
        for (int32_t i = 0; i < d; ++i) {
          const double l = static_cast<float>(plane.landmarks[(j * n_chunks + c) * d + i]);
          const double k = static_cast<float>(plane.keys[((j * n_chunks + c) * 8 + t) * d + i]);
          dot += l * k, ll += l * l, kk += k * k;
        }
        lowest = std::min(lowest, dot / std::sqrt(ll * kk));
      }
      const bool is_outlier = at < n_outliers && o.ids[j * n_outliers + at] == c;
      at += is_outlier;
      double& side = is_outlier ? highest : lowest_left;
      side = is_outlier ? std::max(side, lowest) : std::min(side, lowest);
    }
    ASSERT_EQ(at, n_outliers) << "ids ascend and are in range";
    ASSERT_LE(highest, lowest_left + 2 * tolerance);
  }
}

// All chunks alike but the last: it drives out the highest of the equal ones. With many, equal
// scores exceed the list of one bin.
TEST_F(CudaLandmark, TiesGoToTheLowerChunk) {
  for (const int32_t n : {100, 1500}) {
    Memory<bf16> keys(n * 8 * 64, bf16(1.0f));
    keys[(n - 1) * 8 * 64] = bf16(-20.0f);
    Plane plane{1, 64, 8, n, keys, {}};
    plane.build(0, n);
    Outliers o(plane, 4, n, 10);
    o.run();
    for (int32_t i = 0; i < 9; ++i) EXPECT_EQ(o.ids[i], 4 + i);
    EXPECT_EQ(o.ids[9], n - 1);
    EXPECT_EQ(o.excluded[0], uint64_t{0x1ff} << 4);
    EXPECT_EQ(o.excluded[(n - 1) / 64], uint64_t{1} << ((n - 1) % 64));
  }
}

}  // namespace
}  // namespace tiercel
