// The C interface from C and from Python, each in a program of its own.
#include <gtest/gtest.h>

#include <string>

#include "tests/api/model.h"
#include "tests/sanitized.h"
#include "tests/shell.h"

namespace tiercel::test {
namespace {

const std::string kTests = TIERCEL_BINARY_DIR "/tests/";

TEST(Programs, C11) {
  const ShellResult result =
      shell(kTests + "test_api_c11 " + demo_directory() + " " + kTests + "c11.session");
  EXPECT_EQ(result.code, 0) << result.output;
}

// The leak detector cannot follow the thread-local storage of a library that was loaded late, and
// dies of it at the end; test_api_c11 is the one that it watches.
TEST(Programs, Dlopen) {
  const std::string program = "ASAN_OPTIONS=detect_leaks=0 " + kTests + "test_api_dlopen ";
  const ShellResult result =
      shell(program + TIERCEL_BINARY_DIR "/libtiercel.so " + demo_directory());
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(shell(program + "/nowhere.so x").code, 2);
}

TEST(Programs, Python) {
  if (kSanitized) GTEST_SKIP() << "the interpreter does not have the sanitizer's runtime";
  if (shell("command -v python3").code != 0) GTEST_SKIP() << "no python3";
  const ShellResult result =
      shell("PYTHONPATH=" TIERCEL_SOURCE_DIR "/python TIERCEL_LIBRARY=" TIERCEL_BINARY_DIR
            "/libtiercel.so TIERCEL_MODEL=" +
            std::string(demo_directory()) +
            " python3 -B " TIERCEL_SOURCE_DIR "/tests/api/python_test.py");
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_NE(result.output.find("\nOK"), std::string::npos) << result.output;
}

}  // namespace
}  // namespace tiercel::test
