// A golden model with another config.json.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/session.h"

namespace tiercel::test {

// patch: what is merged into its configuration.
inline std::shared_ptr<Model> open_changed(const std::string& name, const nlohmann::json& patch,
                                           const ModelOptions& options) {
  // Other programs do the same at the same time.
  const std::filesystem::path directory = testing::TempDir() + "changed_" + name + "_" + std::to_string(::getpid());
  std::filesystem::remove_all(directory);
  std::filesystem::copy(TIERCEL_SOURCE_DIR "/tests/golden/models/" + name, directory);
  nlohmann::json config;
  std::ifstream(directory / "config.json") >> config;
  config.merge_patch(patch);
  std::ofstream(directory / "config.json") << config;
  auto model = Model::open(directory.string(), options);
  std::filesystem::remove_all(directory);  // it is mapped
  return model;
}

}  // namespace tiercel::test
