// What ptxas said while the kernels were compiled: no kernel spills registers, no wgmma is serialised
// (C7510 to C7512), no setmaxnreg is ignored (C7508).
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <string>

namespace tiercel {
namespace {

namespace fs = std::filesystem;

struct Report {
  int n_kernels = 0;
  std::set<std::string> architectures;
};

// Adds one compilation's report; complains of spills and of C75xx.
void read(const fs::path& file, Report& report) {
  static const std::regex entry("Compiling entry function '([^']*)' for '([^']*)'");
  static const std::regex spills("([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads");
  std::ifstream stream(file);
  std::string line, kernel;
  std::smatch match;
  while (std::getline(stream, line)) {
    EXPECT_EQ(line.find("C75"), std::string::npos) << file << ": " << line;
    if (std::regex_search(line, match, entry)) {
      kernel = match[1].str() + " for " + match[2].str();
      report.architectures.insert(match[2]);
      ++report.n_kernels;
    } else if (std::regex_search(line, match, spills) && !kernel.empty()) {
      EXPECT_EQ(match[1], "0") << file << ": " << kernel << ": " << line;
      EXPECT_EQ(match[2], "0") << file << ": " << kernel << ": " << line;
    }
  }
}

TEST(PtxasReport, NoKernelSpills) {
  Report report;
  const fs::path objects = fs::path(TIERCEL_BINARY_DIR) / "CMakeFiles/tiercel_kernels.dir/kernels";
  ASSERT_TRUE(fs::exists(objects)) << objects;
  for (const auto& file : fs::directory_iterator(objects)) {
    if (file.path().extension() == ".ptxas") read(file.path(), report);
  }
  EXPECT_GT(report.n_kernels, 60) << "were the reports kept?";
  EXPECT_TRUE(report.architectures.contains("sm_90a"));
}

}  // namespace
}  // namespace tiercel
