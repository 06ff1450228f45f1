#include "cpu/cgroup.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

namespace tiercel::cpu {
namespace {

namespace fs = std::filesystem;

// A tree as /sys/fs/cgroup has it.
class Cgroup : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tiercel-cgroup-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    fs::create_directories(fs::path(root_ + file).parent_path());
    std::ofstream(root_ + file) << text << "\n";
  }
  static constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  std::string root_;
};

TEST_F(Cgroup, WithoutAnyEverythingIsFree) {
  for (const char* membership : {"", "0::/\n", "nonsense\n", "0::/../away\n", "4:memory:/x/y\n0::/\n", "0::x\n"}) {
    EXPECT_EQ(cgroup_memory(root_, membership).limit, kAll) << membership;
    EXPECT_EQ(cgroup_memory(root_, membership).available, kAll) << membership;
  }
}

TEST_F(Cgroup, TheLeastOfItsOwnAndThoseAround) {
  write("/memory.max", "max");
  write("/a/memory.max", "1000");
  write("/a/memory.current", "700");
  write("/a/b/memory.max", "900");
  write("/a/b/memory.current", "100");
  write("/other/memory.max", "10");
  const CgroupMemory inner = cgroup_memory(root_, "0::/a/b\n");
  EXPECT_EQ(inner.limit, 900);
  EXPECT_EQ(inner.available, 300);  // of the one around it
  EXPECT_EQ(cgroup_memory(root_, "0::/a/b/\n").available, 300);
  EXPECT_EQ(cgroup_memory(root_, "0::/a/away\n").limit, 1000);  // a folder that is not here
  EXPECT_EQ(cgroup_memory(root_, "0::/\n").limit, kAll);
}

TEST_F(Cgroup, CachedFilesAreNoUse) {
  write("/memory.max", "1000");
  write("/memory.current", "990");
  write("/memory.stat", "anon 90\nfile 900\ninactive_file 600\nactive_file 300\nslab 5");
  EXPECT_EQ(cgroup_memory(root_, "0::/\n").available, 910);
}

TEST_F(Cgroup, VersionOne) {
  write("/memory/memory.limit_in_bytes", "9223372036854771712");
  write("/memory/docker/x/memory.limit_in_bytes", "500");
  write("/memory/docker/x/memory.usage_in_bytes", "400");
  write("/memory/docker/x/memory.stat", "cache 350\ntotal_inactive_file 200\ntotal_active_file 100");
  const char* membership = "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n";
  EXPECT_EQ(cgroup_memory(root_, membership).limit, 500);
  EXPECT_EQ(cgroup_memory(root_, membership).available, 400);
}

}  // namespace
}  // namespace tiercel::cpu
