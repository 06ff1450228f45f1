// How a prompt is cut into runs, for every size of chunk.
#include "engine/prompt_pass.h"

#include <gtest/gtest.h>

#include "engine/known_models.h"

namespace tiercel {
namespace {

TEST(CutPrompt, CoversThePromptAndSelectsFromWholeChunks) {
  const ModelConfig config = known_model("llama-3.1-8b");
  for (int32_t chunk = 1; chunk <= 128; ++chunk) {
    KvSettings settings;
    settings.select_prefill = true;
    settings.chunk_tokens = chunk;
    for (const int64_t n_tokens : {1, 256, 257, 4351, 4353, 30011}) {
      for (const double run_flops : {1e9, 1e12, 1e15}) {
        int64_t end = 0;
        for (const PromptRun& run : cut_prompt(config, settings, n_tokens, run_flops)) {
          ASSERT_EQ(run.first, end);
          ASSERT_GT(run.n_tokens, 0);
          ASSERT_LE(run.n_tokens, kPrefillChunk);
          end += run.n_tokens;
          if (run.dense) {
            ASSERT_EQ(end, n_tokens) << "a dense run before the tail";
            ASSERT_LT(run.n_tokens, kDenseTail + chunk);
          } else {
            ASSERT_EQ(run.first % settings.prefill_chunk(), 0) << "chunks of " << chunk;
          }
          ASSERT_EQ(run.first % chunk, 0);
        }
        ASSERT_EQ(end, n_tokens);
      }
    }
  }
}

}  // namespace
}  // namespace tiercel
