// Continues a file's text, and says what that took.
#include <tiercel/tiercel.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

namespace {

std::string read_file(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: continue MODEL_DIR PROMPT_FILE\n";
    return 2;
  }
  const tiercel::Engine engine(argv[1]);
  tiercel::Session session = engine.open_session({{"budget", "1024"}, {"n-predict", "64"}});

  session.prefill(read_file(argv[2]), [](const tiercel::Progress& p) {
    std::fprintf(stderr, "\rprefill: %ld of %ld tokens, %.1f s", static_cast<long>(p.processed),
                 static_cast<long>(p.total), p.elapsed);
    return true;  // false would stop
  });
  std::cerr << '\n';
  session.generate(64, [](const tiercel::Piece& piece) {
    std::cout << piece.text << std::flush;
    return true;
  });
  std::cout << '\n';

  const tiercel::Stats stats = session.stats();
  std::cerr << session.backend() << "; " << session.memory().composition << "\n"
            << stats.generated_tokens << " tokens behind " << stats.prompt_tokens << ", "
            << stats.decode_seconds << " s\n";
} catch (const std::exception& error) {
  std::cerr << "continue: " << error.what() << '\n';
  return 1;
}
