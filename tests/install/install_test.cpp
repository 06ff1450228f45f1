// A stranger's path: install, find the package, build the examples, run them. From an installed
// tree that has been moved, and with nothing of the sources but the examples.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

#include "tests/command/process.h"
#include "tests/shell.h"

namespace tiercel::test {
namespace {

const std::string kSource = TIERCEL_SOURCE_DIR;
// A fact among filler and the question for it.
std::string prompt() {
  std::string text;
  for (int i = 0; i < 12; ++i) {
    text += "Step " + std::to_string(i) + " of the guide explains how part " +
            std::to_string(i * 37 % 101) + " of the machine is cleaned. ";
    if (i == 5) text += "\nThe magic number for silver-harbor is 48213.\n";
  }
  return text +
         "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is";
}
const std::string kPrompt = prompt();

// An installation that has been moved after it was made.
class Installed : public ::testing::Test {
 protected:
  void SetUp() override {
    const ShellResult result =
        shell("cmake --install " TIERCEL_BINARY_DIR " --prefix " + (scratch_ / "first"));
    ASSERT_EQ(result.code, 0) << result.output;
    fs::rename(scratch_ / "first", prefix());
    const ShellResult find = shell("find " + prefix() + " -name 'libtiercel.so' -printf '%h'");
    library_dir_ = find.output;
    ASSERT_FALSE(library_dir_.empty());
    write_file(scratch_ / "prompt.txt", kPrompt);
  }
  std::string prefix() const { return scratch_ / "moved"; }
  std::string library_dir() const { return library_dir_; }
  // Shell words that name the package and let what was linked run.
  std::string pkg_config(const std::string& arguments) const {
    return "$(PKG_CONFIG_PATH=" + library_dir() + "/pkgconfig pkg-config " + arguments +
           " tiercel)";
  }
  std::string with_library() const { return "LD_LIBRARY_PATH=" + library_dir() + " "; }
  Scratch scratch_;

 private:
  std::string library_dir_;
};

void expect_the_answer(const ShellResult& result) {
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_TRUE(contains(result.output, " 48213")) << result.output;
}

TEST_F(Installed, HasWhatItPromisesAndNothingElse) {
  const ShellResult find = shell(
      "cd " + prefix() + " && find . -type f -o -type l | sed 's/x86_64-linux-gnu.//' | sort");
  for (const char* file :
       {"./bin/tiercel", "./include/tiercel/tiercel.h", "./include/tiercel/tiercel_c.h",
        "./lib/libtiercel.so", "./lib/cmake/tiercel/tiercel-config.cmake",
        "./lib/pkgconfig/tiercel.pc", "./share/tiercel/python/pyproject.toml",
        "./share/tiercel/python/tiercel/__init__.py", "./share/tiercel/python/tiercel/_batch.py",
        "./share/tiercel/python/tiercel/_library.py", "./share/tiercel/python/tiercel/py.typed",
        "./share/bash-completion/completions/tiercel",
        "./share/fish/vendor_completions.d/tiercel.fish", "./share/doc/tiercel/LICENSE",
        "./share/tiercel/examples/cpp/batch.cpp", "./share/tiercel/examples/c/main.c"}) {
    EXPECT_TRUE(contains(find.output, std::string(file) + "\n")) << file << "\n" << find.output;
  }
  EXPECT_FALSE(contains(find.output, ".a\n")) << find.output;
  EXPECT_FALSE(contains(find.output, "__pycache__")) << find.output;
  // Nothing points back at where it was built or first installed.
  const ShellResult grep = shell("grep -rlI -e " TIERCEL_BINARY_DIR " -e " + kSource +
                                 "/engine -e " + (scratch_ / "first") + " " + prefix());
  EXPECT_EQ(grep.output, "");
  const ShellResult version = shell(prefix() + "/bin/tiercel --version");
  EXPECT_EQ(version.output.find("tiercel 0."), 0u) << version.output;
  EXPECT_TRUE(contains(version.output, "(commit ")) << version.output;
}

TEST_F(Installed, CppByFindPackage) {
  const std::string build = scratch_ / "build";
  const ShellResult make =
      shell("cmake -S " + prefix() + "/share/tiercel/examples/cpp -B " + build +
            " -DCMAKE_PREFIX_PATH=" + prefix() + " && cmake --build " + build);
  ASSERT_EQ(make.code, 0) << make.output;
  expect_the_answer(shell(build + "/continue " + demo_model() + " " + (scratch_ / "prompt.txt")));
  std::string line = kPrompt;
  std::replace(line.begin(), line.end(), '\n', ' ');
  write_file(scratch_ / "prompts.txt", line + "\nOnce upon a time\n\n" + line + "\n");
  const ShellResult batch =
      shell(build + "/batch " + demo_model() + " " + (scratch_ / "prompts.txt"));
  expect_the_answer(batch);
  EXPECT_TRUE(contains(batch.output, "up to 3 at a time")) << batch.output;
  const ShellResult wrong = shell(build + "/continue /nowhere " + (scratch_ / "prompt.txt"));
  EXPECT_EQ(wrong.code, 1);
  EXPECT_TRUE(contains(wrong.output, "/nowhere: expected")) << wrong.output;
}

TEST_F(Installed, ANewerVersionIsNotFound) {
  write_file(scratch_ / "CMakeLists.txt",
             "cmake_minimum_required(VERSION 3.16)\nproject(x NONE)\n"
             "find_package(tiercel 0.99 REQUIRED)\n");
  const ShellResult result = shell("cmake -S " + (scratch_ / "") + " -B " + (scratch_ / "b") +
                                   " -DCMAKE_PREFIX_PATH=" + prefix());
  EXPECT_NE(result.code, 0);
  EXPECT_TRUE(contains(result.output, "version: 0.")) << result.output;
}

TEST_F(Installed, CAndCppByPkgConfig) {
  const std::string examples = prefix() + "/share/tiercel/examples/";
  const ShellResult c = shell("cc -std=c11 -Wall -Wextra -Werror " + examples + "c/main.c " +
                              pkg_config("--cflags --libs") + " -o " + (scratch_ / "c"));
  ASSERT_EQ(c.code, 0) << c.output;
  expect_the_answer(
      shell(with_library() + (scratch_ / "c") + " " + demo_model() + " '" + kPrompt + "'"));
  const ShellResult cpp =
      shell("c++ -std=c++20 -Wall -Wextra -Werror " + examples + "cpp/main.cpp " +
            pkg_config("--cflags --libs") + " -o " + (scratch_ / "cpp"));
  ASSERT_EQ(cpp.code, 0) << cpp.output;
  expect_the_answer(shell(with_library() + (scratch_ / "cpp") + " " + demo_model() + " " +
                          (scratch_ / "prompt.txt")));
  const ShellResult version = shell("echo " + pkg_config("--modversion"));
  EXPECT_EQ(version.output.find("0."), 0u) << version.output;
}

TEST_F(Installed, Python) {
  if (shell("command -v python3").code != 0) GTEST_SKIP() << "no python3";
  // The module finds the library of the prefix that it lies in.
  expect_the_answer(shell("PYTHONPATH=" + prefix() + "/share/tiercel/python python3 -B " +
                          prefix() + "/share/tiercel/examples/python/continue.py " + demo_model() +
                          " '" + kPrompt + "' ' 12345'"));
}

// A Python environment that can build a package without a network, or why there is none. The first
// python3 of the path need not have what the system's has.
ShellResult make_python_environment(const std::string& folder) {
  std::string reasons;
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    const ShellResult made =
        shell(std::string("rm -rf ") + folder + " && " + python +
              " -m venv --system-site-packages --without-pip " + folder + " && " + folder +
              "/bin/python -c 'import setuptools.build_meta, pip\n"
              "try: import setuptools.command.bdist_wheel  # since setuptools 70\n"
              "except ImportError: import wheel'");
    if (made.code == 0) return {0, folder + "/bin/python "};
    reasons += std::string(python) + ":\n" + made.output + "\n";
  }
  return {1, reasons};
}

// Outside of the prefix, by pip's note of where it came from; with no variable that says it.
TEST_F(Installed, PythonByPip) {
  const ShellResult environment = make_python_environment(scratch_ / "venv");
  if (environment.code != 0) {
    GTEST_SKIP() << "pip install is not tested, for want of venv, pip, setuptools or wheel:\n"
                 << environment.output;
  }
  const std::string python =
      "cd / && env -u PYTHONPATH -u TIERCEL_LIBRARY -u LD_LIBRARY_PATH " + environment.output;
  const ShellResult pip =
      shell(python + "-m pip install --no-build-isolation --no-index --no-deps " + prefix() +
            "/share/tiercel/python");
  ASSERT_EQ(pip.code, 0) << pip.output;
  const ShellResult places =
      shell(python + "-c 'import tiercel; print(tiercel.__file__, tiercel._abi.library._name)'");
  EXPECT_EQ(places.output.find(scratch_ / "venv/lib"), 0u) << places.output;
  EXPECT_TRUE(contains(places.output, " " + library_dir() + "/libtiercel.so.0.")) << places.output;
  expect_the_answer(shell(python + prefix() + "/share/tiercel/examples/python/continue.py " +
                          demo_model() + " '" + kPrompt + "' ' 12345'"));
  // Type checkers are told that there are hints.
  EXPECT_EQ(shell("ls " + (scratch_ / "venv/lib/python3*/site-packages/tiercel/py.typed")).code, 0);

  // The prefix is moved once more: pip's note is out of date, pkg-config's file is not.
  const std::string now = scratch_ / "again";
  fs::rename(prefix(), now);
  const std::string now_dir = now + library_dir().substr(prefix().size());
  const ShellResult found = shell("export PKG_CONFIG_PATH=" + now_dir + "/pkgconfig; " + python +
                                  "-c 'import tiercel; print(tiercel._abi.library._name)'");
  EXPECT_EQ(found.code, 0) << found.output;
  if (shell("/sbin/ldconfig -p | grep -q libtiercel || pkg-config --exists tiercel").code == 0) {
    return;  // this machine has an installation, which is found before or instead
  }
  EXPECT_TRUE(contains(found.output, now_dir + "/libtiercel.so.0.")) << found.output;
  const ShellResult lost = shell(python + "-c 'import tiercel'");
  EXPECT_EQ(lost.code, 1);
  for (const std::string& place :
       {std::string("TIERCEL_LIBRARY, which is not set"), scratch_ / "venv/lib",
        prefix() + "/share/tiercel/python (what pip installed it from)",
        std::string("libtiercel.so.0.1: cannot open"), std::string("pkg-config: ")}) {
    EXPECT_TRUE(contains(lost.output, place)) << place << "\n" << lost.output;
  }
}

// The program that the README shows, word for word.
TEST_F(Installed, TheReadmesProgram) {
  const std::string readme = read_file(kSource + "/README.md");
  const size_t begin = readme.find("```cpp\n");
  ASSERT_NE(begin, std::string::npos);
  const size_t end = readme.find("```\n", begin + 7);
  const std::string program = readme.substr(begin + 7, end - begin - 7);
  EXPECT_LE(std::count(program.begin(), program.end(), '\n'), 20);
  write_file(scratch_ / "readme.cpp", program);
  const ShellResult make =
      shell("c++ -std=c++20 -Wall -Wextra -Werror " + (scratch_ / "readme.cpp") + " " +
            pkg_config("--cflags --libs") + " -o " + (scratch_ / "readme"));
  ASSERT_EQ(make.code, 0) << make.output;
  expect_the_answer(
      shell(with_library() + (scratch_ / "readme") + " " + demo_model() + " '" + kPrompt + "'"));
}

TEST(Examples, AreShort) {
  for (const char* file : {"/examples/cpp/main.cpp", "/examples/cpp/batch.cpp",
                           "/examples/c/main.c", "/examples/python/continue.py"}) {
    const std::string text = read_file(kSource + file);
    EXPECT_GT(text.size(), 0u) << file;
    EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 60) << file;
  }
}

}  // namespace
}  // namespace tiercel::test
