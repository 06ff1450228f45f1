// Continues every line of a file, many at a time.
#include <tiercel/tiercel.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

std::vector<std::string> read_lines(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: batch MODEL_DIR PROMPTS_FILE\n";
    return 2;
  }
  const std::vector<std::string> prompts = read_lines(argv[2]);
  const tiercel::Engine engine(argv[1]);
  size_t longest = 1;
  for (const std::string& prompt : prompts) {
    longest = std::max(longest, engine.tokenize(prompt).size());
  }
  tiercel::Batch batch = engine.open_batch(
      {{"max-prompt", std::to_string(longest)}, {"n-predict", "32"}, {"parallel", "8"}});

  std::vector<tiercel::Request> requests;
  for (const std::string& prompt : prompts) requests.push_back(batch.submit(prompt));
  for (size_t i = 0; i < requests.size(); ++i) {
    try {
      std::cout << prompts[i] << requests[i].wait().text << "\n\n";
    } catch (const tiercel::Error& error) {  // this one's only
      std::cerr << "line " << i + 1 << ": " << error.what() << '\n';
    }
  }
  const tiercel::BatchStats stats = batch.stats();
  std::fprintf(stderr, "%ld tokens in %ld steps, %.2f s; up to %ld at a time\n",
               static_cast<long>(stats.step_tokens), static_cast<long>(stats.steps),
               stats.step_seconds, static_cast<long>(stats.most_decoding));
} catch (const std::exception& error) {
  std::cerr << "batch: " << error.what() << '\n';
  return 1;
}
