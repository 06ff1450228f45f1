// The file of a saved session: no damage goes unnoticed, nothing half written appears, and nonsense
// under right checksums is refused rather than believed.
#include "engine/session_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/saved_session.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModel = TIERCEL_SOURCE_DIR "/tests/golden/models/llama";

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

template <typename F>
std::string complaint(F action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class SessionFileTest : public testing::Test {
 protected:
  SessionFileTest() {
    std::string pattern = (fs::temp_directory_path() / "tiercel-file-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    path_ = (folder_ / "a.session").string();
  }
  ~SessionFileTest() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  // Of a short prompt, so that every byte can be tried; with a selection cache in it.
  void save(int64_t n_prompt, const SessionOptions& options, int64_t n_steps = 2) {
    model_ = Model::open(kModel, {.backend = BackendKind::kCpu, .n_threads = 2});
    for (int64_t i = 0; i < n_prompt + n_steps; ++i)
      ids_.push_back(static_cast<int32_t>(i * 7 % 256));
    session_ = Session::open(model_, Session::plan(*model_, options, n_prompt, n_steps + 8));
    session_->prefill(std::span(ids_).first(static_cast<size_t>(n_prompt)), {});
    for (int64_t i = 0; i < n_steps; ++i) session_->step(ids_[static_cast<size_t>(n_prompt + i)]);
    session_->save(path_, ids_, {});
  }
  void save_small() {
    SessionOptions options = test::two_tiers(preset(AttentionMode::kTokenSelect));
    options.selection.budget = 16;
    options.selection.recent = 4;
    options.selection.sinks = 2;
    save(24, options);
  }

  // What opening, checking and restoring a file complains about; empty when all is well.
  std::string complaint_of(const std::string& path) const {
    try {
      const auto saved = SavedSession::open(path);
      auto session = Session::open(model_, Session::plan(*model_, saved->options(), *saved, 4));
      session->restore(*saved, {});
      session->step(1);
      session->logits();
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  // A number of a block that is not as it was saved.
  struct Forgery {
    std::string block;
    int64_t at;  // of a row's int32s; below 0: from its end
    int32_t value;
    bool all_rows = false;  // else row 0
  };
  // What is said of a copy with it, and with right checksums.
  std::string complaint_about(const SessionFile& file, const Forgery& forgery) const {
    const std::string other = (folder_ / "other").string();
    SessionFileWriter writer(other, file.meta(), file.blocks());
    for (const FileBlock& block : file.blocks()) {
      for (int64_t row = 0; row < block.n_rows; ++row) {
        const auto bytes = file.row(block, row);
        std::vector<std::byte> copy(bytes.begin(), bytes.end());
        if (block.name == forgery.block && (row == 0 || forgery.all_rows)) {
          const int64_t at = 4 * forgery.at + (forgery.at < 0 ? std::ssize(copy) : 0);
          std::memcpy(copy.data() + at, &forgery.value, 4);
        }
        writer.append(copy);
      }
    }
    writer.commit();
    return complaint_of(other);
  }
  static std::string complaint_about_bytes(const std::string& path) {
    try {
      SessionFile::open(path)->check_blocks(1);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  void expect_nothing_else_there() const {
    for (const auto& entry : fs::directory_iterator(folder_)) EXPECT_EQ(entry.path(), path_);
  }

  fs::path folder_;
  std::string path_;
  std::shared_ptr<Model> model_;
  std::unique_ptr<Session> session_;
  std::vector<int32_t> ids_;
};

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Every byte of the file, one after the other, has one bit turned. The header's are seen when a
// file is opened, those of the blocks when they are checked.
TEST_F(SessionFileTest, EveryFlippedByteIsDetected) {
  save_small();
  ASSERT_EQ(complaint_of(path_), "");
  const std::string bytes = read_all(path_);
  ASSERT_LT(bytes.size(), 400'000u);
  std::mt19937_64 random(test::seed());
  const int fd = ::open(path_.c_str(), O_RDWR);
  const auto opened = SessionFile::open(path_);  // shares the pages that are written below
  const auto header = static_cast<size_t>(opened->blocks()[0].offset);
  for (size_t i = 0; i < bytes.size(); i += test::kSanitized && i >= header ? 7 : 1) {
    const char flipped = static_cast<char>(bytes[i] ^ (1 << random() % 8));
    ASSERT_EQ(::pwrite(fd, &flipped, 1, static_cast<off_t>(i)), 1);
    const std::string why = i < header || i % 64 == 0 ? complaint_about_bytes(path_)
                                                      : complaint([&] { opened->check_blocks(1); });
    ASSERT_FALSE(why.empty()) << "byte " << i;
    ASSERT_EQ(::pwrite(fd, &bytes[i], 1, static_cast<off_t>(i)), 1);
  }
  ::close(fd);
  EXPECT_EQ(complaint_of(path_), "");
}

TEST_F(SessionFileTest, RestoringChecksEveryBlock) {
  save_small();
  const auto file = SessionFile::open(path_);
  const int fd = ::open(path_.c_str(), O_RDWR);
  for (const FileBlock& block : file->blocks()) {
    const off_t at = block.offset + block.row_bytes / 2;
    char byte = 0;
    ASSERT_EQ(::pread(fd, &byte, 1, at), 1);
    const char flipped = static_cast<char>(byte ^ 0x10);
    ASSERT_EQ(::pwrite(fd, &flipped, 1, at), 1);
    EXPECT_TRUE(contains(complaint_of(path_), block.name)) << block.name;
    ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
  }
  ::close(fd);
}

TEST_F(SessionFileTest, EveryTruncationIsRefused) {
  save_small();
  const std::string bytes = read_all(path_);
  const auto file = SessionFile::open(path_);
  std::vector<int64_t> lengths = {
      0, 1, 7, 8, 39, 40, 41, 4095, file->bytes() - 1, file->bytes() + 1, file->bytes() + 4096};
  for (const FileBlock& block : file->blocks()) {
    for (const int64_t off : {-1, 0, 1}) lengths.push_back(block.offset + off);
  }
  const std::string cut = (folder_ / "cut").string();
  for (const int64_t length : lengths) {
    std::string part = bytes;
    part.resize(static_cast<size_t>(length));
    std::ofstream(cut, std::ios::binary) << part;
    const std::string why = complaint_about_bytes(cut);
    EXPECT_TRUE(contains(why, cut)) << length << ": " << why;
  }
}

TEST_F(SessionFileTest, SaysWhatItFound) {
  save_small();
  const auto refuse = [&](const std::string& path, const char* word) {
    const std::string why = complaint_of(path);
    EXPECT_TRUE(contains(why, word) && contains(why, path)) << why;
  };
  std::string bytes = read_all(path_);
  bytes[8] = 3;
  const std::string other = (folder_ / "other").string();
  std::ofstream(other, std::ios::binary) << bytes;
  refuse(other, "expected version 2");
  std::ofstream(other) << "{\"not\": \"a session, however long this text may be made to be\"}";
  refuse(other, "expected a saved session");
  refuse((folder_ / "none").string(), "No such file");
  refuse(folder_.string(), "directory");
  refuse("/dev/null", "no regular file");
  const std::string pipe = (folder_ / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  refuse(pipe, "no regular file");
  if (::geteuid() != 0) {
    ::chmod(path_.c_str(), 0);
    refuse(path_, "denied");
  }
}

// The same blocks under another meta text, with right checksums.
void rewrite(const SessionFile& file, const std::string& meta, const std::string& to) {
  SessionFileWriter writer(to, meta, file.blocks());
  for (const FileBlock& block : file.blocks()) {
    for (int64_t row = 0; row < block.n_rows; ++row) writer.append(file.row(block, row));
  }
  writer.commit();
}

// Somebody's program may write what it likes: numbers are replaced one by one, and where the result
// is still taken for a session, it is one that can be used.
TEST_F(SessionFileTest, NonsenseUnderRightChecksumsIsRefused) {
  save_small();
  const auto file = SessionFile::open(path_);
  const std::string meta = file->meta(), other = (folder_ / "other").string();
  const std::string values[] = {"0",   "1",    "-1",   "3", "25", "4096", "1000000000000",
                                "0.5", "null", "\"x\""};
  int64_t n_refused = 0, n_taken = 0;
  for (size_t begin = 0; begin < meta.size(); ++begin) {
    const auto digit = [&](size_t i) { return meta[i] >= '0' && meta[i] <= '9'; };
    if (!digit(begin) || meta[begin - 1] != ':') continue;
    size_t end = begin;
    while (digit(end) || meta[end] == '.') ++end;
    for (const std::string& value : values) {
      rewrite(*file, meta.substr(0, begin) + value + meta.substr(end), other);
      (complaint_of(other).empty() ? n_taken : n_refused) += 1;
    }
  }
  EXPECT_GT(n_refused, 200);
  EXPECT_GT(n_taken, 10);  // other budgets, for one
  for (const char* wrong : {"{}", "{\"layers\":3}"}) {
    rewrite(*file, wrong, other);
    EXPECT_TRUE(contains(complaint_of(other), other));
  }
}

// Ids in lists and slot tables are read as places in memory.
TEST_F(SessionFileTest, PlacesOutOfBoundsAreRefused) {
  SessionOptions options = test::two_tiers(preset(AttentionMode::kShadow));
  options.selection.budget = 16;
  options.selection.recent = 8;
  options.selection.outliers = 1;
  options.selection.reuse_steps = 4;
  save(120, options, 4);
  const auto file = SessionFile::open(path_);
  for (const char* name :
       {"layer 0 slots of chunks", "layer 0 chunks of slots", "layer 1 slot order", "layer 1 list",
        "layer 1 list counts", "token ids"}) {
    ASSERT_NE(file->find(name), nullptr) << name;
    for (const int32_t wrong : {-2, 1 << 20}) {
      EXPECT_FALSE(complaint_about(*file, {name, -1, wrong, /*all_rows=*/true}).empty()) << name;
    }
  }
  EXPECT_EQ(complaint_of(path_), "");
}

// A selection cache whose tables contradict each other would give a slot away twice.
TEST_F(SessionFileTest, SlotTablesThatContradictEachOtherAreRefused) {
  SessionOptions options = test::two_tiers(preset(AttentionMode::kShadow));
  options.selection.budget = 16;
  options.selection.recent = 8;
  options.selection.outliers = 1;
  save(120, options, 4);
  const auto file = SessionFile::open(path_);
  const auto ints_of = [&](const char* name) {
    const auto bytes = file->row(*file->find(name), 0);
    std::vector<int32_t> ints(bytes.size() / 4);
    std::memcpy(ints.data(), bytes.data(), bytes.size());
    return ints;
  };
  const std::vector<int32_t> order = ints_of("layer 1 slot order");
  const std::vector<int32_t> chunks = ints_of("layer 1 chunks of slots");
  const std::vector<int32_t> slots = ints_of("layer 1 slots of chunks");
  const auto cached = std::find_if(chunks.begin(), chunks.end(), [](int32_t c) { return c >= 0; });
  const auto without = std::find(slots.begin(), slots.end(), -1);
  ASSERT_TRUE(cached != chunks.end() && without != slots.end() && order.size() > 1);
  const int64_t slot = cached - chunks.begin(), uncached = without - slots.begin();
  EXPECT_TRUE(contains(complaint_about(*file, {"layer 1 slot order", 0, order[1]}), "every slot once"));
  EXPECT_TRUE(contains(complaint_about(*file, {"layer 1 chunks of slots", slot,
                                               static_cast<int32_t>(uncached)}),
                       "found it elsewhere"));
  EXPECT_TRUE(contains(complaint_about(*file, {"layer 1 slots of chunks", *cached, -1}),
                       "found it elsewhere"));
  EXPECT_TRUE(contains(
      complaint_about(*file, {"layer 1 slots of chunks", uncached, static_cast<int32_t>(slot)}),
      "chunks in slots"));
  EXPECT_EQ(complaint_of(path_), "");
}

TEST_F(SessionFileTest, WhatCannotBeWrittenLeavesNothing) {
  save_small();
  const std::string before = read_all(path_);
  const auto refuse = [&](const std::string& path, const char* word) {
    const std::string why = complaint([&] { session_->save(path, ids_, {}); });
    EXPECT_TRUE(contains(why, word)) << why;
  };
  refuse("/dev/full", "a device");
  refuse(folder_.string(), "a directory");
  refuse("", "empty");
  refuse((folder_ / "none/a.session").string(), "No such file");
  EXPECT_TRUE(
      contains(complaint([&] { SessionFileWriter::check_path("/proc/a.session", 1); }), "/proc"));
  EXPECT_TRUE(
      contains(complaint([&] { SessionFileWriter::check_path(path_, INT64_MAX); }), "left"));
  expect_nothing_else_there();

  // A full disk, as far as one process can have it.
  const auto old_action = ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  ::getrlimit(RLIMIT_FSIZE, &old_limit);
  rlimit limit = old_limit;
  limit.rlim_cur = before.size() / 2;
  ::setrlimit(RLIMIT_FSIZE, &limit);
  refuse(path_, "too large");
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  ::signal(SIGXFSZ, old_action);
  expect_nothing_else_there();
  EXPECT_EQ(read_all(path_), before);
  session_->save(path_, ids_, {});
  EXPECT_EQ(read_all(path_), before) << "the same session gives the same bytes";
}

// What a killed process left is taken over; what a living one writes is left alone.
TEST_F(SessionFileTest, OneWriterAtATime) {
  save_small();
  const std::string partial = path_ + ".partial";
  std::ofstream(partial) << std::string(1'000'000, 'x');
  session_->save(path_, ids_, {});
  expect_nothing_else_there();
  EXPECT_EQ(complaint_of(path_), "");
  const auto file = SessionFile::open(path_);
  {
    const SessionFileWriter other(path_, file->meta(), file->blocks());
    EXPECT_TRUE(contains(complaint([&] { session_->save(path_, ids_, {}); }), "another process"));
    EXPECT_TRUE(fs::exists(partial)) << "it is the other one's";
  }
  expect_nothing_else_there();
}

TEST_F(SessionFileTest, LinksStay) {
  save_small();
  const std::string link = (folder_ / "link").string();
  fs::create_symlink(path_, link);
  session_->save(link, ids_, {});
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_FALSE(fs::is_symlink(path_));
  EXPECT_EQ(complaint_of(link), "");
}

// Long rows are mapped, not read: a session that goes on writes to its own memory.
TEST_F(SessionFileTest, AMappedFileStaysAsItIs) {
  SessionOptions options = test::two_tiers(preset(AttentionMode::kShadow));
  options.selection.budget = 64;
  options.selection.recent = 32;
  options.selection.rank = 16;
  options.prefill = PrefillMode::kSelect;
  options.prefill_budget = 512;
  save(9000, options, 0);
  const std::string before = read_all(path_);
  const auto saved = SavedSession::open(path_);
  ASSERT_GE(saved->file().find("layer 0 values")->row_bytes, kLongRow);
  auto copy = Session::open(model_, Session::plan(*model_, saved->options(), *saved, 101));
  auto dropped = SavedSession::open(path_);
  copy->restore(*dropped, {});
  dropped.reset();
  std::ifstream maps("/proc/self/maps");
  int64_t n_mapped = 0;
  for (std::string line; std::getline(maps, line);) n_mapped += contains(line, "a.session");
  EXPECT_GT(n_mapped, 4);
  for (int i = 0; i < 100; ++i) {
    if (i < 8) session_->step(i);
    copy->step(i);
    if (i == 7) {
      const auto a = session_->logits(), b = copy->logits();
      EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    }
  }
  EXPECT_EQ(read_all(path_), before);
  // Saving over the file that the session lives on replaces the name, not the bytes.
  std::vector<int32_t> ids = ids_;
  for (int i = 0; i < 100; ++i) ids.push_back(i);
  copy->save(path_, ids, {});
  copy->step(1);
  EXPECT_EQ(complaint_of(path_), "");
  EXPECT_EQ(SavedSession::open(path_)->n_tokens(), 9100);
}

}  // namespace
}  // namespace tiercel
