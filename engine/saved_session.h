// What a saved session says of itself, and what its file will look like: the link between a
// session's state and the blocks of a file (session_file.h).
//
//   const auto saved = SavedSession::open("book.session");              // the header only: cheap
//   const SessionPlan plan = Session::plan(*model, options, *saved, n_new);
//   auto session = Session::open(model, plan);
//   session->restore(*saved, {});                                         // instead of prefill
//   std::vector<int32_t> ids = saved->ids();                              // what is in the session
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"
#include "engine/session.h"
#include "engine/session_file.h"
#include "offload/kv_state.h"

namespace tiercel {

class SavedSession {
 public:
  // Errors: those of SessionFile::open, and a header that makes no sense.
  static std::shared_ptr<const SavedSession> open(const std::string& path);

  // As the saved session's plan had decided them: a good start for the options of the restored one.
  const SessionOptions& options() const { return options_; }
  int64_t n_tokens() const { return state_.n_tokens; }
  int64_t n_prompt() const { return state_.n_prompt; }  // of them were prefilled
  bool long_rope() const { return long_rope_; }
  int64_t bytes() const { return file_->bytes(); }
  const std::string& path() const { return file_->path(); }
  // The tokens in the session, [n_tokens]. Restoring checks them against their checksum; before,
  // they are as they are.
  std::vector<int32_t> ids() const;

  // Throws Error(kUsage) with the reason when a session of this model and plan cannot take this
  // state: another model, or options that its bytes depend on. May differ:
  //
  //   for what is selected   --budget, --top-p-mass, --coarse-share, --group, --scope, --reuse,
  //                          --reuse-steps, --miss-cap, a preset's name
  //   for where and how      --slots, --value-home, --host-attention, --device-memory, --host-memory,
  //                          --ctx-size, --threads, --backend, --device, --no-graphs
  //   for what is measured   --strict; --audit, but on only where it was on or keys are exact
  //   for what is appended   --prefill, --prefill-budget; --exact-exp, which is not saved
  //
  // With dense attention, everything of selection.
  void check_fits(const ModelConfig& config, const std::string& fingerprint,
                  const SessionPlan& plan) const;

  const SessionFile& file() const { return *file_; }
  // What of these options comes too late; whole sentences.
  std::vector<std::string> notes_on(const SessionOptions& here) const;
  // For a store of this layout: without what it has no room for or no use for.
  KvState state_for(const KvLayout& layout, BackendKind backend) const;

 private:
  SavedSession() = default;

  std::shared_ptr<const SessionFile> file_;
  std::string fingerprint_;
  bool long_rope_ = false;
  DualChunk dual_chunk_;
  SessionOptions options_;
  BackendKind backend_ = BackendKind::kCpu;
  int64_t n_slots_ = 0, resident_layers_ = 0;  // of the layout that the cache was saved from
  KvState state_;
};

// What the engine keeps beside the store.
inline constexpr const char* kIdsBlock = "token ids";         // int32 [n_tokens]
inline constexpr const char* kLogitsBlock = "logits";         // fp32 [vocab_size]
inline constexpr const char* kPromptEndBlock = "prompt end";  // bf16 [hidden]

// A file that is yet to be written.
struct SessionImage {
  std::string meta;               // JSON
  std::vector<FileBlock> blocks;  // the three above, then those of the store
  std::vector<StateBlock> state_blocks;
  int64_t file_bytes = 0;
};
SessionImage session_image(const ModelConfig& config, const std::string& fingerprint,
                           const SessionPlan& plan, const KvState& state);

}  // namespace tiercel
