// The extents of what the sequences of a batch share, and of what a prompt takes while it is
// prefilled, beside the store's.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/device_sampler.h"
#include "engine/transformer.h"

namespace tiercel {

struct BatchLayout {
  // staged: the host cannot read the device's memory.
  // draft: tokens that are guessed for one sequence alone, at most.
  BatchLayout(const ModelConfig& config, int64_t max_prompt, int64_t max_context, int64_t n_sequences, int64_t draft,
              bool staged);
  int64_t device_bytes() const;
  int64_t host_bytes() const;
  // Of one prompt, on the device and on the host.
  static int64_t prompt_bytes(const ModelConfig& config, int64_t n_prompt, bool staged, bool states_on_host);
  static int64_t host_prompt_bytes(const ModelConfig& config, int64_t n_prompt, bool states_on_host);

  // Of a segment of a text behind a prefix, on the device.
  static int64_t append_bytes(const ModelConfig& config, int64_t n_tokens, bool staged);

  TransformerLayout transformer;
  // Rows: a token each of all sequences, or tokens that one of them appends.
  int64_t hidden = 0;       // bf16, [rows][hidden]
  int64_t ids = 0;          // int32 [rows] on the device, staged only
  int64_t host_ids = 0;     // int32 [rows], likewise
  int64_t host_best = 0;    // int32, likewise: the most likely token of each row of logits
  int64_t host_logits = 0;  // fp32 [vocab], likewise
  int64_t clock = 0;            // int64 on the device, likewise
  DeviceSamplerLayout sampler;  // likewise, for those that are picked at once
};

}  // namespace tiercel
