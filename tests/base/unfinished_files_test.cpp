#include "engine/base/unfinished_files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

namespace tiercel {
namespace {

namespace fs = std::filesystem;

TEST(UnfinishedFiles, GoWhileRegisteredAndStayAfterwards) {
  std::string pattern = (fs::temp_directory_path() / "tiercel-unfinished-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const auto make = [&](const std::string& name) {
    const std::string path = pattern + "/" + name;
    std::ofstream(path) << "x";
    return path;
  };
  const std::string done = make("done"), half = make("half"), moved = make("moved");
  { const UnfinishedFile file(done); }
  UnfinishedFile kept(half), from(moved), to;
  to = std::move(from);
  unlink_unfinished_files();
  EXPECT_TRUE(fs::exists(done));
  EXPECT_FALSE(fs::exists(half));
  EXPECT_FALSE(fs::exists(moved));
  kept.forget();
  // More than there is room for: nothing breaks, and room comes back.
  for (int round = 0; round < 2; ++round) {
    std::vector<UnfinishedFile> many;
    for (int i = 0; i < 100; ++i) many.emplace_back(pattern + "/none");
  }
  const std::string last = make("last");
  const UnfinishedFile again(last);
  unlink_unfinished_files();
  EXPECT_FALSE(fs::exists(last));
  fs::remove_all(pattern);
}

}  // namespace
}  // namespace tiercel
