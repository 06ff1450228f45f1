// Compositions of selection that every test of stores goes through.
#pragma once

#include <functional>
#include <vector>

#include "offload/kv_store.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel::test {

// Every composition of selection, given room for everything, attends everything.
struct Composition {
  const char* name;
  std::function<void(KvSettings&)> apply;
};
inline std::vector<Composition> compositions() {
  return {
      {"extremes", [](KvSettings& s) { s.index = IndexKind::kMinMax; s.outliers = 0; }},
      {"exact tokens",
       [](KvSettings& s) { s.chunk_tokens = 1; s.outliers = 0; s.recent = 33; }},
      {"soft vote",
       [](KvSettings& s) {
         s.scope = SelectScope::kLayer;
         s.group = GroupScore::kSum;
         s.outliers = 0;
       }},
      {"mean of weights, all of the mass",
       [](KvSettings& s) { s.group = GroupScore::kMean; s.top_p = 2; }},
      {"int8 landmarks", [](KvSettings& s) { s.landmark_codec = RowCodec::kInt8; }},
      {"int8 extremes",
       [](KvSettings& s) {
         s.index = IndexKind::kMinMax;
         s.landmark_codec = RowCodec::kInt8;
         s.outliers = 0;
       }},
      {"two levels", [](KvSettings& s) { s.coarse_tokens = 32; s.coarse_share = 1; }},
      {"two levels of extremes",
       [](KvSettings& s) {
         s.index = IndexKind::kMinMax;
         s.coarse_tokens = 16;
         s.coarse_share = 1;
         s.outliers = 0;
       }},
      {"two levels, the second in int8",
       [](KvSettings& s) {
         s.coarse_tokens = 32;
         s.coarse_share = 1;
         s.landmark_codec = RowCodec::kInt8;
       }},
      {"a static part", [](KvSettings& s) { s.outliers = 0; s.static_chunks = 5; }},
      {"a static part beside extremes",
       [](KvSettings& s) {
         s.index = IndexKind::kMinMax;
         s.outliers = 0;
         s.static_chunks = 5;
       }},
      {"a generous cap",
       [](KvSettings& s) { s.miss_cap = 1000; s.estimate = true; }},
      {"at home on the device", [](KvSettings& s) { s.device_layers = 2; }},
      {"half at home on the device", [](KvSettings& s) { s.device_layers = 1; }},
      {"shared by two layers", [](KvSettings& s) { s.share_layers = 2; }},
      {"tokens shared by two layers, at home on the device",
       [](KvSettings& s) {
         s.share_layers = 2;
         s.chunk_tokens = 1;
         s.outliers = 0;
         s.device_layers = 2;
       }},
  };
}

// What the host may attend itself.
struct HostAttended {
  Composition composition;
  bool weighed;  // the device has the keys
};
inline std::vector<HostAttended> host_attended() {
  return {
      {{"exact keys", [](KvSettings&) {}}, false},
      {{"two layers share a list", [](KvSettings& s) { s.share_layers = 2; }}, false},
      {{"half at home on the device", [](KvSettings& s) { s.device_layers = 1; }}, false},
      {{"tokens", [](KvSettings& s) { s.chunk_tokens = 1; s.outliers = 0; s.recent = 33; }}, true},
      {{"int8 keys",
        [](KvSettings& s) {
          s.keys = KeyForm::kCoded;
          s.key_codec = RowCodec::kInt8;
        }},
       true},
      {{"low-rank keys, int8 values",
        [](KvSettings& s) {
          s.keys = KeyForm::kLowRank;
          s.value_codec = RowCodec::kInt8;
        }},
       true},
      {{"int4 keys and values, a list per layer",
        [](KvSettings& s) {
          s.keys = KeyForm::kCoded;
          s.key_codec = s.value_codec = RowCodec::kInt4;
          s.scope = SelectScope::kLayer;
          s.outliers = 0;
        }},
       true},
  };
}

// Under a sanitizer the emulator takes minutes: it does every third one of a list, which ones the seed
// decides.
template <typename Tiers>
bool is_left_out(size_t i) {
  return Tiers::kEmulated && kSanitized && (i + seed()) % 3 != 0;
}

}  // namespace tiercel::test
