// An ISA-suffixed file must not give the linker an inline function: compiled with that file's flags, it
// could become everybody's copy and fault on a lesser machine (cpu/isa.h). Reads the library with nm.
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <regex>
#include <string>

#include "tests/sanitized.h"

namespace {

TEST(IsaSymbols, NoWeakOnesInFilesOfOneLevel) {
  if (tiercel::test::kSanitized) GTEST_SKIP() << "sanitizers add weak symbols of their own";
  const std::unique_ptr<FILE, int (*)(FILE*)> nm(
      popen("nm -C --defined-only " TIERCEL_BINARY_DIR "/libtiercel_cpu.a 2>/dev/null", "r"),
      pclose);
  ASSERT_NE(nm, nullptr);
  const std::regex member("^(\\S+_(avx2|avx512|avx512vnni|avx512bf16|amx)\\.cpp\\.o):");
  const std::regex any_member("^(\\S+\\.o):");
  const std::regex weak("^[0-9a-f]+ [WVu] (.*)");
  std::string file;
  int n_files = 0;
  char line[4096];
  while (std::fgets(line, sizeof line, nm.get()) != nullptr) {
    std::cmatch match;
    if (std::regex_search(line, match, member)) {
      file = match[1];
      ++n_files;
    } else if (std::regex_search(line, any_member)) {
      file.clear();
    } else if (!file.empty() && std::regex_search(line, match, weak)) {
      ADD_FAILURE() << file << " defines the weak symbol " << match[1];
    }
  }
  if (n_files == 0) GTEST_SKIP() << "no nm, or no such files on this processor";
  EXPECT_GT(n_files, 10);
}

}  // namespace
