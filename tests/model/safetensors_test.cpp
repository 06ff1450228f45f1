#include "engine/safetensors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "tests/model/files.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

constexpr char kTwoTensors[] = R"({"__metadata__":{"format":"pt"},)"
                               R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                               R"("b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}})";

std::vector<TensorInfo> parse(std::string_view file) {
  return SafetensorsFile::parse_header(std::as_bytes(std::span(file)), file.size(),
                                       "x.safetensors");
}

// The header with one tensor "t" of the given description, and `data_bytes` bytes of data.
void expect_refused(const std::string& description, size_t data_bytes,
                    std::vector<std::string> parts) {
  parts.push_back("x.safetensors");
  const std::string file =
      safetensors(R"({"t":)" + description + "}", std::string(data_bytes, '\0'));
  expect_error([&] { parse(file); }, parts);
}

TEST(Safetensors, ReadsATable) {
  const auto tensors = parse(safetensors(kTwoTensors, std::string(16, '\0')));
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::kBf16);
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors[0].offset, 8 + std::strlen(kTwoTensors));
  EXPECT_EQ(tensors[0].bytes, 12u);
  EXPECT_EQ(tensors[1].n_elements(), 1);
  EXPECT_TRUE(tensors[1].shape.empty());
}

TEST(Safetensors, OrderInTheHeaderDoesNotMatter) {
  const auto tensors =
      parse(safetensors(R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},)"
                        R"("z":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                        R"("e":{"dtype":"F16","shape":[0,7],"data_offsets":[4,4]}}   )",
                        std::string(8, '\0')));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "z");
  EXPECT_EQ(tensors[1].name, "e");  // empty tensors lie anywhere
  EXPECT_EQ(tensors[2].name, "a");
}

TEST(Safetensors, AFileWithoutTensorsIsValid) {
  EXPECT_TRUE(parse(safetensors("{}")).empty());
  EXPECT_TRUE(parse(safetensors(R"({"__metadata__":{}})")).empty());
}

TEST(Safetensors, RefusesWhatIsNoSafetensorsFile) {
  expect_error([] { parse(""); }, {"x.safetensors", "8 bytes", "found 0 bytes"});
  expect_error([] { parse("1234567"); }, {"8 bytes", "found 7 bytes"});
  expect_error([] { parse(safetensors("{}").substr(0, 9)); }, {"header of 2 bytes", "truncated"});
  // Length fields that lie: more than the file, more than the format allows, all ones.
  expect_error([] { parse(std::string("\xff\0\0\0\0\0\0\0{}", 10)); }, {"header of 255 bytes"});
  expect_error([] { parse(std::string(8, '\xff') + "{}"); }, {"at most", "18446744073709551615"});
  expect_error([] { parse(std::string("\x00\xe1\xf5\x05\0\0\0\0{}", 10)); },
               {"header of 100000000 bytes", "file of 10 bytes"});
  expect_error([] { parse(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10)); }, {"at most"});
  expect_error([] { parse(safetensors("")); }, {"starts with '{'", "empty"});
  expect_error([] { parse(safetensors("[1]")); }, {"starts with '{'", "[1]"});
  expect_error([] { parse(safetensors(" {}")); }, {"starts with '{'"});
  expect_error([] { parse(safetensors("{\"a\":")); }, {"expected JSON", "header"});
  expect_error([] { parse(safetensors("{} x")); }, {"expected JSON"});
  expect_error([] { parse(safetensors("{\"\xff\":1}")); }, {"expected JSON"});
  const std::string deep = "{\"a\":" + std::string(1000000, '[');
  expect_error([&] { parse(safetensors(deep)); }, {"nested levels"});
}

TEST(Safetensors, RefusesBadEntries) {
  expect_refused("7", 0, {"t", "expected an object, found 7"});
  expect_refused(R"({"shape":[1],"data_offsets":[0,2]})", 2, {"t.dtype", "no such key"});
  expect_refused(R"({"dtype":7,"shape":[1],"data_offsets":[0,2]})", 2, {"t.dtype", "a string"});
  expect_refused(R"({"dtype":"BF16","data_offsets":[0,2]})", 2, {"t.shape", "no such key"});
  expect_refused(R"({"dtype":"BF16","shape":1,"data_offsets":[0,2]})", 2, {"t.shape", "an array"});
  expect_refused(R"({"dtype":"BF16","shape":[-1],"data_offsets":[0,2]})", 2, {"t.shape[0]", "-1"});
  expect_refused(R"({"dtype":"BF16","shape":[1.5],"data_offsets":[0,2]})", 2,
                 {"t.shape[0]", "integer", "1.5"});
  expect_refused(R"({"dtype":"BF16","shape":[1]})", 2, {"t.data_offsets", "no such key"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":[0]})", 2, {"two offsets"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":[0,2,4]})", 2, {"two offsets"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":["0",2]})", 2,
                 {"t.data_offsets[0]", "integer"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":[-2,0]})", 2, {"-2"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":[2,0]})", 2, {"begin <= end"});
  expect_refused(R"({"dtype":"BF16","shape":[2],"data_offsets":[0,2]})", 2,
                 {"tensor t", "expected 4 bytes", "found 2"});
  expect_refused(R"({"dtype":"I64","shape":[1],"data_offsets":[0,2]})", 2, {"expected 8 bytes"});
}

TEST(Safetensors, RefusesSizesThatOverflow) {
  // 2^32 * 2^32 * 2 would be 0 modulo 2^64.
  expect_refused(R"({"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0,
                 {"tensor t", "2^56"});
  expect_refused(R"({"dtype":"F64","shape":[0,9223372036854775807,9],"data_offsets":[0,0]})", 0,
                 {"2^56"});
  expect_refused(R"({"dtype":"BF16","shape":[18446744073709551615],"data_offsets":[0,2]})", 2,
                 {"integer"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":[0,18446744073709551615]})", 2,
                 {"integer"});
  expect_refused(
      R"({"dtype":"BF16","shape":[1],"data_offsets":[9223372036854775805,9223372036854775807]})", 2,
      {"truncated"});
  expect_refused(
      R"({"dtype":"BF16","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,2]})", 2,
      {"16 dimensions"});
}

TEST(Safetensors, RefusesTruncatedData) {
  const std::string whole = safetensors(kTwoTensors, std::string(16, '\0'));
  for (size_t cut = 1; cut <= 16; ++cut) {
    expect_error([&] { parse(whole.substr(0, whole.size() - cut)); }, {"tensor", "truncated"});
  }
  expect_error([&] { parse(whole + "x"); }, {"1 bytes more"});
}

TEST(Safetensors, RefusesHolesAndOverlaps) {
  const auto two = [](int begin, int end, size_t bytes) {
    return safetensors(
        fmt::format(R"({{"a":{{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}},)"
                    R"("b":{{"dtype":"BF16","shape":[{}],"data_offsets":[{},{}]}}}})",
                    (end - begin) / 2, begin, end),
        std::string(bytes, '\0'));
  };
  EXPECT_EQ(parse(two(4, 8, 8)).size(), 2u);
  expect_error([&] { parse(two(2, 8, 8)); }, {"tensor b", "overlapping"});
  expect_error([&] { parse(two(0, 4, 4)); }, {"overlapping"});
  expect_error([&] { parse(two(6, 8, 8)); }, {"tensor b", "holes are not allowed"});
  expect_refused(R"({"dtype":"BF16","shape":[1],"data_offsets":[2,4]})", 4, {"holes"});
}

TEST(Safetensors, RefusesDuplicateNamesAndOddMetadata) {
  expect_error(
      [] {
        parse(safetensors(R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
                          R"("a":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}})",
                          "1234"));
      },
      {"\"a\"", "twice"});
  expect_error([] { parse(safetensors(R"({"__metadata__":{"a":1}})")); },
               {"__metadata__", "strings"});
  expect_error([] { parse(safetensors(R"({"__metadata__":[]})")); }, {"__metadata__", "an object"});
}

TEST(Safetensors, ForeignDtypesMayExist) {
  const TempDir dir;
  const auto path = dir.write(
      "x.safetensors", safetensors(R"({"bits":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},)"
                                   R"("ids":{"dtype":"I64","shape":[1],"data_offsets":[2,10]},)"
                                   R"("new":{"dtype":"F3_NEW","shape":[9],"data_offsets":[10,14]},)"
                                   R"("w":{"dtype":"F16","shape":[1],"data_offsets":[14,16]}})",
                                   std::string(16, '\0')));
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_NE(file.find("w"), nullptr);
  EXPECT_EQ(file.find("nothing"), nullptr);
  for (const char* name : {"ids", "new", "bits"}) EXPECT_FALSE(file.find(name)->supported) << name;
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TempDir dir;
  expect_error([&] { MappedFile::open(dir.path() / "missing"); }, {"missing", "No such file"});
  expect_error([&] { MappedFile::open(dir.path()); }, {"expected a file, found a directory"});
  ASSERT_EQ(::mkfifo((dir.path() / "pipe").c_str(), 0600), 0);
  expect_error([&] { MappedFile::open(dir.path() / "pipe"); }, {"pipe", "regular file"});
  EXPECT_TRUE(MappedFile::open(dir.write("empty", "")).bytes().empty());
  expect_error([&] { SafetensorsFile::open(dir.path() / "empty"); }, {"empty", "found 0 bytes"});
}

TEST(MappedFile, SaysThatPermissionIsMissing) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything: permission is NOT tested";
  const TempDir dir;
  const auto path = dir.write("secret", "x");
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  expect_error([&] { MappedFile::open(path); }, {"secret", "Permission denied"});
}

TEST(MappedFile, MovesItsMapping) {
  const TempDir dir;
  MappedFile a = MappedFile::open(dir.write("a", "hello"));
  MappedFile b = std::move(a);
  EXPECT_TRUE(a.bytes().empty());  // NOLINT: a moved-from mapping is empty by contract
  ASSERT_EQ(b.bytes().size(), 5u);
  b.will_need(0, 5);
  b.will_need(99, 5);
  b = MappedFile::open(dir.write("b", "world!"));
  EXPECT_EQ(b.bytes().size(), 6u);
}

// Offsets beyond 2^31 and 2^32: five gigabytes of which a few pages exist.
TEST(Safetensors, ReadsPastFourGigabytes) {
  const TempDir dir;
  const uint64_t big = 5'000'000'000;
  const std::string header =
      fmt::format(R"({{"big":{{"dtype":"BF16","shape":[{},1000000],"data_offsets":[0,{}]}},)"
                  R"("tail":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}}}})",
                  big / 2 / 1000000, big, big, big + 8);
  const auto path = dir.write("big.safetensors", safetensors(header));
  const float tail[2] = {1.5f, -2.25f};
  const int descriptor = ::open(path.c_str(), O_WRONLY);
  ASSERT_GE(descriptor, 0);
  const uint64_t start = 8 + header.size();
  if (::ftruncate(descriptor, static_cast<off_t>(start + big + 8)) != 0) {
    ::close(descriptor);
    GTEST_SKIP() << "the temporary folder cannot hold a sparse file of 5 GB: NOT tested";
  }
  ASSERT_EQ(::pwrite(descriptor, tail, 8, static_cast<off_t>(start + big)), 8);
  ::close(descriptor);

  const SafetensorsFile file = SafetensorsFile::open(path);
  const TensorInfo* info = file.find("tail");
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->offset, start + big);
  bf16 values[2];
  EXPECT_EQ(to_bf16(*info, values), 0);
  EXPECT_EQ(static_cast<float>(values[0]), 1.5f);
  EXPECT_EQ(static_cast<float>(values[1]), -2.25f);
  EXPECT_EQ(file.find("big")->n_elements(), static_cast<int64_t>(big / 2));

  // One byte less is a truncated file, found without touching the data.
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(start + big + 7)), 0);
  expect_error([&] { SafetensorsFile::open(path); }, {"tensor tail", "truncated"});
}

// ---- values ----

// A tensor over `values` that starts at an odd address.
template <typename T>
class Odd {
 public:
  Odd(DType dtype, const std::vector<T>& values) : bytes_(values.size() * sizeof(T) + 1) {
    if (!values.empty()) std::memcpy(bytes_.data() + 1, values.data(), values.size() * sizeof(T));
    info.name = "odd";
    info.dtype = dtype;
    info.supported = true;
    info.shape = {static_cast<int64_t>(values.size())};
    info.bytes = values.size() * sizeof(T);
    info.data = bytes_.data() + 1;
  }
  TensorInfo info;

 private:
  std::vector<std::byte> bytes_;
};

TEST(ToBf16, RoundsF32ToNearestEvenAndReportsOverflow) {
  const float inf = std::numeric_limits<float>::infinity();
  // 1 + 2^-8 and 1 + 3 * 2^-8 lie in the middle between two bf16 numbers.
  const std::vector<float> values = {1.0f, 1.00390625f,   1.01171875f,   3.4e38f, -3.4e38f,
                                     inf,  std::nanf(""), 3.3895314e38f, 1e-45f,  -0.0f};
  const Odd<float> tensor(DType::kF32, values);
  std::vector<bf16> out(values.size());
  EXPECT_EQ(to_bf16(tensor.info, out.data()), 2);
  EXPECT_EQ(out[0].bits, 0x3f80);
  EXPECT_EQ(out[1].bits, 0x3f80);
  EXPECT_EQ(out[2].bits, 0x3f82);
  EXPECT_EQ(out[3].bits, 0x7f80);
  EXPECT_EQ(out[4].bits, 0xff80);
  EXPECT_EQ(out[5].bits, 0x7f80);
  EXPECT_TRUE(std::isnan(static_cast<float>(out[6])));
  EXPECT_EQ(out[7].bits, 0x7f7f);
  EXPECT_EQ(out[8].bits, 0x0000);
  EXPECT_EQ(out[9].bits, 0x8000);
}

// All 65536 f16 numbers, against a conversion by arithmetic.
TEST(ToBf16, ConvertsEveryF16) {
  std::vector<uint16_t> values(65536);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  const Odd<uint16_t> tensor(DType::kF16, values);
  std::vector<bf16> out(values.size());
  EXPECT_EQ(to_bf16(tensor.info, out.data()), 0);
  for (uint32_t i = 0; i < 65536; ++i) {
    const int exponent = (i >> 10) & 31;
    const int mantissa = i & 1023;
    const double sign = (i & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == 31) {
      const auto value = static_cast<float>(out[i]);
      EXPECT_EQ(std::isnan(value), mantissa != 0) << i;
      EXPECT_EQ(std::isinf(value), mantissa == 0) << i;
      EXPECT_EQ(out[i], bf16(f16_to_float(static_cast<uint16_t>(i)))) << i;
      continue;
    }
    const double exact = exponent == 0 ? sign * std::ldexp(mantissa, -24)
                                       : sign * std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(out[i], bf16(static_cast<float>(exact))) << i;
  }
}

TEST(ToBf16, CopiesBf16AndAcceptsNothing) {
  const Odd<uint16_t> tensor(DType::kBf16, {0x3f80, 0x7f80, 0x7fc1});
  bf16 out[3];
  EXPECT_EQ(to_bf16(tensor.info, out), 0);
  EXPECT_EQ(out[2].bits, 0x7fc1);
  const Odd<float> empty(DType::kF32, {});
  EXPECT_EQ(to_bf16(empty.info, nullptr), 0);
  EXPECT_EQ(find_non_finite(empty.info), std::nullopt);
}

// The first bad value is found wherever it is: at the ends, on block borders, alone or not.
template <typename T>
void check_find(DType dtype, T good, const std::vector<T>& bad, std::mt19937_64& random) {
  for (const int64_t n : {1, 7, 4095, 4096, 4097, 10000}) {
    std::vector<T> values(static_cast<size_t>(n), good);
    EXPECT_EQ(find_non_finite(Odd<T>(dtype, values).info), std::nullopt);
    for (const T value : bad) {
      for (int64_t place : {int64_t{0}, n / 2, n - 1, static_cast<int64_t>(random() % n)}) {
        std::vector<T> broken = values;
        broken[static_cast<size_t>(place)] = value;
        broken.back() = value;
        EXPECT_EQ(find_non_finite(Odd<T>(dtype, broken).info), place) << name_of(dtype) << " " << n;
      }
    }
  }
}

TEST(FindNonFinite, FindsTheFirstOfEveryKind) {
  std::mt19937_64 random(seed());
  check_find<uint16_t>(DType::kBf16, 0xff7f, {0x7f80, 0xff80, 0x7fc0, 0x7f81}, random);
  check_find<uint16_t>(DType::kF16, 0xfbff, {0x7c00, 0xfc00, 0x7e00, 0x7c01}, random);
  check_find<uint32_t>(DType::kF32, 0xff7fffffu,
                       {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u}, random);
}

}  // namespace
}  // namespace tiercel::test
