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

TEST(UnfinishedFiles, BelongBehindLinks) {
  std::string pattern = (fs::temp_directory_path() / "tiercel-links-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const fs::path folder = fs::canonical(pattern);
  fs::create_directory(folder / "there");
  fs::create_symlink("there/new", folder / "dangling");
  fs::create_symlink(folder / "dangling", folder / "twice");
  fs::create_symlink("loop", folder / "loop");
  EXPECT_EQ(behind_links((folder / "twice").string()), (folder / "there/new").string());
  std::ofstream(folder / "there/new") << "x";
  EXPECT_EQ(behind_links((folder / "dangling").string()), (folder / "there/new").string());
  EXPECT_EQ(behind_links((folder / "plain").string()), (folder / "plain").string());
  EXPECT_EQ(behind_links("plain"), "plain");
  behind_links((folder / "loop").string());  // ends
  fs::remove_all(folder);
}

TEST(UnfinishedFiles, TheirNamesAreFree) {
  std::string pattern = (fs::temp_directory_path() / "tiercel-names-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  for (const std::string& name : {std::string("report"), std::string(255, 'n')}) {
    for (int i = 0; i < 3; ++i) {
      const std::string unused = unused_name_beside(pattern + "/" + name);
      EXPECT_EQ(fs::path(unused).parent_path(), pattern);
      EXPECT_FALSE(fs::exists(unused));
      std::ofstream file(unused);
      EXPECT_TRUE(file << "what a killed process left") << unused;
    }
  }
  fs::remove_all(pattern);
}

}  // namespace
}  // namespace tiercel
