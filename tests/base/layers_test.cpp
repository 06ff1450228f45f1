// The layers of the source tree, as STYLE draws them: an arrow only points down.
//
//   tests  ->  tools  ->  engine  ->  offload, cpu, kernels  ->  engine/base
//
// cpu and kernels never see each other; offload is templates over a backend and sees neither; no
// CUDA header outside kernels/*.cu and *.cuh. Reads #include lines, so it needs no build of what it
// checks.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel {
namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"engine/base", {"engine/base"}},
    {"cpu", {"cpu", "engine/base"}},
    {"kernels", {"kernels", "engine/base"}},
    {"offload", {"offload", "engine/base"}},
    {"engine", {"engine", "offload", "cpu", "kernels", "engine/base"}},
    {"tools", {"tools", "engine", "offload", "cpu", "kernels", "engine/base"}},
    {"tests", {"tests", "tools", "engine", "offload", "cpu", "kernels", "engine/base"}},
};

// "" for what is no part of the tree.
std::string layer_of(const std::string& path) {
  if (path.starts_with("engine/base/")) return "engine/base";
  const std::string top = path.substr(0, path.find('/'));
  return path.find('/') != std::string::npos && kMayInclude.contains(top) ? top : "";
}

struct Include {
  std::string target;
  bool quoted;
  int line;
};

std::vector<Include> includes_of(std::istream& file) {
  std::vector<Include> includes;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    size_t i = line.find_first_not_of(" \t");
    if (i == std::string::npos || line[i] != '#') continue;
    i = line.find_first_not_of(" \t", i + 1);
    if (i == std::string::npos || line.compare(i, 7, "include") != 0) continue;
    const size_t open = line.find_first_of("\"<", i);
    if (open == std::string::npos) continue;
    const size_t close = line.find_first_of("\">", open + 1);
    includes.push_back({line.substr(open + 1, close - open - 1), line[open] == '"', number});
  }
  return includes;
}

bool is_cuda_header(std::string_view header) {
  constexpr std::string_view kPrefixes[] = {"cuda",    "cublas", "cusolver", "cub/",
                                            "thrust/", "nvtx",   "mma.h",    "cooperative_groups"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [&](std::string_view prefix) { return header.starts_with(prefix); });
}

// What is wrong with one include; empty when nothing.
std::string complaint(const std::string& file, const Include& include) {
  const bool cuda_source = file.ends_with(".cu") || file.ends_with(".cuh");
  if (is_cuda_header(include.target) && !(file.starts_with("kernels/") && cuda_source)) {
    return "a CUDA header outside kernels/*.cu and *.cuh";
  }
  if (include.target.ends_with(".cuh") && !cuda_source) return "a .cuh outside CUDA sources";
  // Where the instructions are named, the emulator's definitions of them are too.
  if (file == "kernels/gpu.cuh" && include.target == "tests/simt/gpu_simt.h") return "";
  const std::string from = layer_of(file), to = layer_of(include.target);
  if (to.empty()) {
    return include.quoted ? "quotes are for files of this tree, by their path from its root" : "";
  }
  if (!include.quoted) return "files of this tree are included with quotes";
  return kMayInclude.at(from).contains(to) ? "" : from + " must not see " + to;
}

TEST(Layers, IncludesOnlyPointDown) {
  const fs::path root = TIERCEL_SOURCE_DIR;
  int n_files = 0;
  for (const char* top : {"engine", "offload", "cpu", "kernels", "tools", "tests"}) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh")
        continue;
      const std::string file = fs::relative(entry.path(), root).generic_string();
      std::ifstream stream(entry.path());
      ++n_files;
      for (const Include& include : includes_of(stream)) {
        const std::string wrong = complaint(file, include);
        EXPECT_TRUE(wrong.empty())
            << file << ":" << include.line << ": " << include.target << ": " << wrong;
      }
    }
  }
  EXPECT_GT(n_files, 20) << "is TIERCEL_SOURCE_DIR right? " << root;
}

TEST(Layers, TheRulesCatchWhatTheyAreFor) {
  const auto complain = [](const char* file, const char* target, bool quoted = true) {
    return !complaint(file, {target, quoted, 1}).empty();
  };
  EXPECT_TRUE(complain("cpu/queue.cpp", "kernels/stream.h"));
  EXPECT_TRUE(complain("kernels/stream.cu", "cpu/queue.h"));
  EXPECT_TRUE(complain("engine/base/check.h", "engine/config.h"));
  EXPECT_TRUE(complain("offload/arena.h", "engine/session.h"));
  EXPECT_TRUE(complain("offload/arena.h", "cpu/queue.h"));
  EXPECT_TRUE(complain("engine/session.cpp", "tools/flags.h"));
  EXPECT_TRUE(complain("engine/session.cpp", "cuda_runtime.h", false));
  EXPECT_TRUE(complain("kernels/stream.h", "cuda_runtime.h", false));
  EXPECT_TRUE(complain("cpu/queue.cpp", "queue.h"));
  EXPECT_TRUE(complain("kernels/select.cuh", "tests/simt/gpu_simt.h"));
  EXPECT_FALSE(complain("kernels/stream.cu", "cuda_runtime.h", false));
  EXPECT_FALSE(complain("engine/session.cpp", "cpu/queue.h"));
  EXPECT_FALSE(complain("cpu/queue.cpp", "engine/base/check.h"));
  EXPECT_FALSE(complain("tools/run.cpp", "vector", false));
}

}  // namespace
}  // namespace tiercel
