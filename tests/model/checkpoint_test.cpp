#include "engine/checkpoint.h"

#include <gtest/gtest.h>

#include "tests/model/files.h"

namespace tiercel::test {
namespace {

// A file with one BF16 tensor [2, 3].
std::string one_tensor(const std::string& name) {
  return safetensors(R"({")" + name + R"(":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}})",
                     std::string(12, '\0'));
}

constexpr char kIndex[] = "model.safetensors.index.json";

TEST(Checkpoint, OpensOneFile) {
  const TempDir dir;
  dir.write("model.safetensors", one_tensor("a.weight"));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.n_tensors(), 1u);
  EXPECT_EQ(checkpoint.total_bytes(), 12u);
  EXPECT_EQ(checkpoint.require("a.weight", {2, 3}).bytes, 12u);
  EXPECT_EQ(checkpoint.find("b.weight"), nullptr);
  checkpoint.will_need();
  expect_error([&] { checkpoint.tensor("b.weight"); },
               {dir.path().string(), "b.weight", "found none"});
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{3, 2}, {6}, {2, 3, 1}, {}}) {
    expect_error([&] { checkpoint.require("a.weight", std::span<const int64_t>(shape)); },
                 {"model.safetensors", "tensor a.weight", "expected shape " + to_string(shape),
                  "found [2, 3]"});
  }
}

TEST(Checkpoint, ForeignDtypesCannotBeUsed) {
  const TempDir dir;
  const auto path = dir.write("model.safetensors",
                              safetensors(R"({"bits":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},)"
                                          R"("ids":{"dtype":"I64","shape":[1],"data_offsets":[2,10]},)"
                                          R"("new":{"dtype":"F3_NEW","shape":[9],"data_offsets":[10,14]}})",
                                          std::string(14, '\0')));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  expect_error([&] { checkpoint.find("ids"); }, {path.string(), "tensor ids", "found I64"});
  expect_error([&] { checkpoint.find("new"); }, {"found F3_NEW"});
  expect_error([&] { checkpoint.find("bits"); }, {"found F4"});
  EXPECT_EQ(checkpoint.find_any("ids")->stored_dtype, "I64");
}

TEST(Checkpoint, OpensShards) {
  const TempDir dir;
  dir.write("x-1.safetensors", one_tensor("a"));
  dir.write("x-2.safetensors", one_tensor("b"));
  dir.write(kIndex, R"({"metadata":{"total_size":24},)"
                    R"("weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}})");
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.total_bytes(), 24u);
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string_view>{"a", "b"}));
  EXPECT_NE(checkpoint.file_of("b").find("x-2.safetensors"), std::string::npos);
  // It may move: names and tensors stay where they are.
  Checkpoint source = Checkpoint::open(dir.path());
  const Checkpoint moved = std::move(source);
  EXPECT_EQ(moved.require("b", {2, 3}).name, "b");
}

TEST(Checkpoint, AShardMayBeALink) {  // the Hugging Face cache consists of links
  const TempDir dir;
  const TempDir blobs;
  const auto blob = blobs.write("0a1b2c", one_tensor("a"));
  std::filesystem::create_symlink(blob, dir.path() / "model.safetensors");
  EXPECT_EQ(Checkpoint::open(dir.path()).n_tensors(), 1u);
}

TEST(Checkpoint, NamesWhatIsMissing) {
  const TempDir dir;
  expect_error([&] { Checkpoint::open(dir.path() / "none"); }, {"none", "found nothing"});
  expect_error([&] { Checkpoint::open(dir.write("file", "")); }, {"found another file"});
  expect_error([&] { Checkpoint::open(dir.path()); },
               {"model.safetensors or model.safetensors.index.json", "found neither"});
  dir.write("pytorch_model.bin", "");
  expect_error([&] { Checkpoint::open(dir.path()); }, {"pytorch_model.bin", "save_pretrained"});

  dir.write(kIndex, R"({"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}})");
  dir.write("x-1.safetensors", one_tensor("a"));
  expect_error([&] { Checkpoint::open(dir.path()); }, {kIndex, "shard x-2.safetensors"});
  dir.write("x-2.safetensors", one_tensor("c"));
  expect_error([&] { Checkpoint::open(dir.path()); }, {"x-2.safetensors", "tensor b", "no such"});
  dir.write("x-2.safetensors", one_tensor("b").substr(0, 70));
  expect_error([&] { Checkpoint::open(dir.path()); }, {"x-2.safetensors", "truncated"});
}

TEST(Checkpoint, AnEmptyWeightFileIsRefused) {
  const TempDir dir;
  dir.write("model.safetensors", "");
  expect_error([&] { Checkpoint::open(dir.path()); }, {"model.safetensors", "found 0 bytes"});
}

TEST(CheckpointIndex, RefusesMalformedOnes) {
  const auto refused = [](std::string_view text, const std::vector<std::string>& parts) {
    expect_error([&] { parse_checkpoint_index(text, "i.json"); }, parts);
  };
  refused("", {"i.json", "expected JSON"});
  refused("{", {"i.json", "expected JSON"});
  refused("[]", {"i.json", "an object"});
  refused("{}", {"i.json", "weight_map", "no such key"});
  refused(R"({"weight_map":null})", {"weight_map", "null"});
  refused(R"({"weight_map":[]})", {"weight_map", "an object", "array"});
  refused(R"({"weight_map":{}})", {"weight_map", "at least one tensor"});
  refused(R"({"weight_map":{"a":1}})", {"weight_map.a", "a string"});
  refused(R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})", {"\"a\"", "twice"});
  for (const char* shard :
       {"../x.safetensors", "/etc/x.safetensors", "d/x.safetensors", "..", ".", "", ".safetensors",
        "x.bin", "d\\\\x.safetensors", "x\\u0000.safetensors", ".x.safetensors"}) {
    refused(fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", shard),
            {"weight_map.a", "plain file name"});
  }
  // Two dots inside a name are not a way out.
  EXPECT_EQ(parse_checkpoint_index(R"({"weight_map":{"a":"x..1.safetensors"}})", "i").size(), 1u);
}

}  // namespace
}  // namespace tiercel::test
