// Statistics by name, for the C interface, or all of them at once.
//
// number() throws v0::Error(kUsage) listing the names that exist. numbers() writes values in the
// order of the names, as far as there is room for them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "engine/tiercel.h"

namespace tiercel::detail {

double number(const v0::ModelInfo& info, std::string_view name);
void numbers(const v0::ModelInfo& info, std::span<double> values);
const char* model_number_name(size_t index);  // nullptr beyond
double number(const v0::MemoryPlan& plan, std::string_view name);
void numbers(const v0::MemoryPlan& plan, std::span<double> values);
const char* plan_number_name(size_t index);  // nullptr beyond
// Statistics and plan.
double number(const v0::Session& session, std::string_view name);
void numbers(const v0::Session& session, std::span<double> values);
size_t session_number_count();
const char* session_number_name(size_t index);  // nullptr beyond
// Statistics, and the plan of the largest sequences.
double number(const v0::Batch& batch, std::string_view name);
void numbers(const v0::Batch& batch, std::span<double> values);
const char* batch_number_name(size_t index);  // nullptr beyond
double number(const v0::RequestStats& stats, std::string_view name);
void numbers(const v0::RequestStats& stats, std::span<double> values);
const char* request_number_name(size_t index);  // nullptr beyond
// Notes: a line each.
std::string text(const v0::MemoryPlan& plan, std::string_view name);
// The plan's, and the backend.
std::string text(const v0::Session& session, std::string_view name);

}  // namespace tiercel::detail
