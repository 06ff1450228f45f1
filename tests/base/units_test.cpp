#include "engine/base/units.h"

#include <gtest/gtest.h>

#include <limits>

namespace tiercel {
namespace {

TEST(Units, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(int64_t{9} << 20), "9.00 MiB");
  EXPECT_EQ(format_bytes((int64_t{150} << 30) + 1), "150 GiB");
  EXPECT_EQ(format_bytes(-(int64_t{3} << 41)), "-6.00 TiB");
}

TEST(Units, CountsRatesAndDurations) {
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1048576), "1,048,576");
  EXPECT_EQ(format_count(-1000), "-1,000");
  EXPECT_EQ(format_rate(9.876), "9.88");
  EXPECT_EQ(format_rate(45678.4), "45,678");
  EXPECT_EQ(format_rate(std::numeric_limits<double>::infinity()), "-");
  EXPECT_EQ(format_duration(4.23), "4.2 s");
  EXPECT_EQ(format_duration(187), "3:07");
  EXPECT_EQ(format_duration(5025), "1:23:45");
  EXPECT_EQ(format_duration(-1), "-");
}

}  // namespace
}  // namespace tiercel
